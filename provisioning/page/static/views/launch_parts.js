// What the forms have in common: where an error belongs, and numbers that may be left out.
import { Field } from "../dialog.js";
import { html } from "../ui.js";

/** The error of the field whose key it names, or of a key within it. */
export function errorAt(error, key, ...others) {
  if (!error?.key) return null;
  const keys = [key, ...others];
  if (
    !keys.some(
      (one) => error.key === one || error.key.startsWith(`${one}.`) || error.key.startsWith(`${one}[`),
    )
  )
    return null;
  return error.message.slice(error.message.indexOf(": ") + 2);
}

export function numberOf(text) {
  return text === "" || text === null || text === undefined ? null : Number(text);
}

/** Without what is null, empty or an empty table: the service knows the defaults. */
export function compact(value) {
  if (Array.isArray(value)) return value.map(compact);
  if (value === null || typeof value !== "object") return value;
  const kept = Object.entries(value)
    .map(([key, inner]) => [key, compact(inner)])
    .filter(([, inner]) => inner !== null && inner !== "" && !(Array.isArray(inner) && inner.length === 0))
    .filter(
      ([, inner]) => typeof inner !== "object" || Array.isArray(inner) || Object.keys(inner).length > 0,
    );
  return Object.fromEntries(kept);
}

export function words(text) {
  return text.split(/[\s,]+/).filter(Boolean);
}

/** A text as a shell takes it. */
export function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** An input bound to a key of the form's values. */
export function Input({ form, name, title, hint, error, type = "text", wide, ...more }) {
  const [values, set] = form;
  return html`<${Field} name=${name} title=${title} hint=${hint} error=${error} wide=${wide}>
    ${(
      a,
    ) => html`<input ...${a} ...${more} type=${type} value=${values[name]} autocomplete="off" spellcheck=${false}
      onInput=${(event) => set({ ...values, [name]: event.target.value })} />`}
  <//>`;
}

export function Select({ form, name, title, hint, error, options, wide }) {
  const [values, set] = form;
  return html`<${Field} name=${name} title=${title} hint=${hint} error=${error} wide=${wide}>
    ${(
      a,
    ) => html`<select ...${a} value=${values[name]}
      onChange=${(event) => set({ ...values, [name]: event.target.value })}>
      ${options.map(([value, text]) => html`<option key=${value} value=${value}
        selected=${value === values[name]}>${text}</option>`)}
    </select>`}
  <//>`;
}

/** The same by the command line, to learn it or to keep it. */
export function Command({ text }) {
  return html`<div class="command"><span class="faint">The same on the command line</span>
    <pre tabindex="0" aria-label="Command"><code>${text}</code></pre></div>`;
}
