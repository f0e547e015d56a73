// Dialogs: of the browser's own kind, so that focus, Escape and the rest of the page are as people expect.
import { ErrorNote, html, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";

/**
 * A question that is answered by doing something, or not. `action(fields)` gets the form's values, and the dialog
 * stays open with the error while it fails. `after(result)` is called when it was done.
 */
export function Dialog({ title, verb, danger, action, after, onClose, children }) {
  const dialog = useRef(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  useLayoutEffect(() => {
    const opened = dialog.current;
    opened.showModal();
    // Closed before it is gone: so the focus returns to where it was.
    return () => opened.close();
  }, []);
  const mounted = useRef(true);
  useEffect(
    () => () => {
      mounted.current = false;
    },
    [],
  );
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setError(null);
    try {
      const result = await action(Object.fromEntries(new FormData(event.target)));
      if (!mounted.current) return;
      dialog.current.close();
      after?.(result);
    } catch (failure) {
      if (mounted.current) setError(failure);
    } finally {
      if (mounted.current) setBusy(false);
    }
  };
  return html`<dialog ref=${dialog} aria-labelledby="dialog-title" onClose=${onClose}>
    <form onSubmit=${submit}>
      <h2 id="dialog-title">${title}</h2>
      <div class="dialog-body">${children}</div>
      <${ErrorNote} error=${error} />
      <div class="dialog-end">
        <button type="button" onClick=${() => dialog.current.close()}>Not now</button>
        <button type="submit" class=${danger ? "danger" : "primary"} aria-disabled=${busy}>
          ${busy ? "One moment…" : verb}
        </button>
      </div>
    </form>
  </dialog>`;
}

/** A field of a dialog or a form: label, input, what is said about it. */
export function Field({ name, title, hint, error, children, wide }) {
  const said = [hint && `${name}-hint`, error && `${name}-error`].filter(Boolean).join(" ") || undefined;
  return html`<div class=${`field${wide ? " wide" : ""}${error ? " wrong" : ""}`}>
    <label for=${name}>${title}</label>
    ${children({ id: name, "aria-describedby": said, "aria-invalid": error ? "true" : undefined })}
    ${hint && html`<p class="hint" id=${`${name}-hint`}>${hint}</p>`}
    ${error && html`<p class="field-error" id=${`${name}-error`}>${error}</p>`}
  </div>`;
}
