// The rows of a plan: its waves, and the criteria to abort.
import { html } from "../ui.js";

const GATES = [
  ["none", "goes on"],
  ["approval", "awaits an approval"],
  ["pause", "pauses"],
];

export function Waves({ waves, setWaves, at }) {
  const change = (i, part) => setWaves(waves.map((wave, j) => (i === j ? { ...wave, ...part } : wave)));
  const add = () => {
    const last = waves.length - 1;
    const before = last > 0 && waves[last - 1].by === "percent" ? Number(waves[last - 1].size) : 0;
    const fresh = {
      by: "percent",
      size: String(Math.round((before + 100) / 2)),
      threshold: "",
      gate: "none",
      pause_s: "",
    };
    setWaves([...waves.slice(0, last), fresh, waves[last]]);
  };
  return html`<fieldset><legend>Waves</legend>
    <ol class="wave-rows" role="list">${waves.map((wave, i) => {
      const last = i === waves.length - 1;
      const said = at(`waves[${i}]`);
      const wrong = (key) => (at(`waves[${i}].${key}`) ? "true" : undefined);
      const described = said ? `wave-${i}-error` : undefined;
      return html`<li key=${i}>
        <span class="wave-number">${i + 1}</span>
        ${
          last
            ? html`<span class="wave-size">all the rest</span>`
            : html`<span class="wave-size"><input class="short" type="number" min="0" step="any"
              value=${wave.size} aria-label=${`Size of wave ${i + 1}`}
              aria-invalid=${wrong("percent") ?? wrong("count")} aria-describedby=${described}
              onInput=${(event) => change(i, { size: event.target.value })} />
              <select aria-label=${`Unit of wave ${i + 1}`}
                onChange=${(event) => change(i, { by: event.target.value })}>
                <option value="percent" selected=${wave.by === "percent"}>% reached</option>
                <option value="count" selected=${wave.by === "count"}>devices</option></select></span>`
        }
        <label class="inline">needs <input class="short" aria-label=${`Percent of successes that wave ${i + 1} needs`} type="number" min="0" max="100" step="any"
          value=${wave.threshold} placeholder="any" aria-invalid=${wrong("success_threshold_percent")}
          aria-describedby=${described}
          onInput=${(event) => change(i, { threshold: event.target.value })} /> % successes</label>
        ${
          !last &&
          html`<span class="wave-gate"><select aria-label=${`After wave ${i + 1}`}
            onChange=${(event) => change(i, { gate: event.target.value })}>
            ${GATES.map(([value, text]) => html`<option key=${value} value=${value}
            selected=${wave.gate === value}>${text}</option>`)}</select>
          ${wave.gate === "pause" && html`<label class="inline">for <input class="short" aria-label=${`Seconds of the pause after wave ${i + 1}`} type="number" min="0"
            step="any" value=${wave.pause_s} aria-invalid=${wrong("pause_s")} aria-describedby=${described}
            onInput=${(event) => change(i, { pause_s: event.target.value })} /> s</label>`}</span>
          <button type="button" class="quiet" aria-label=${`Remove wave ${i + 1}`} title="Remove"
            onClick=${() => setWaves(waves.filter((_, j) => j !== i))}>✕</button>`
        }
        ${said && html`<p class="field-error" id=${`wave-${i}-error`}>${said}</p>`}
      </li>`;
    })}</ol>
    <button type="button" class="quiet" onClick=${add}>Add a wave</button>
  </fieldset>`;
}

export function Criteria({ criteria, setCriteria, at }) {
  const change = (i, part) => setCriteria(criteria.map((one, j) => (i === j ? { ...one, ...part } : one)));
  return html`<fieldset><legend>When to abort</legend>
    ${criteria.length === 0 && html`<p class="hint">Never: it goes on whatever happens.</p>`}
    <ol class="wave-rows" role="list">${criteria.map((one, i) => {
      const said = at(`abort[${i}]`);
      const described = said ? `abort-${i}-error` : undefined;
      return html`<li key=${i}>
        <select aria-label=${`What criterion ${i + 1} is about`}
          aria-invalid=${at(`abort[${i}].on`) ? "true" : undefined} aria-describedby=${described}
          onChange=${(event) => change(i, { on: event.target.value })}>
          ${[
            ["failed", "failed"],
            ["timed_out", "timed out"],
            ["rejected", "rejected"],
            ["all", "not provisioned"],
          ].map(
            ([value, text]) =>
              html`<option key=${value} value=${value} selected=${one.on === value}>${text}</option>`,
          )}</select>
        <label class="inline">from <input class="short" type="number" min="0" max="100" step="any"
          value=${one.threshold} aria-invalid=${at(`abort[${i}].threshold_percent`) ? "true" : undefined}
          aria-describedby=${described}
          onInput=${(event) => change(i, { threshold: event.target.value })} /> %</label>
        <label class="inline">of at least <input class="short" type="number" min="1" value=${one.sample}
          aria-invalid=${at(`abort[${i}].min_sample`) ? "true" : undefined} aria-describedby=${described}
          onInput=${(event) => change(i, { sample: event.target.value })} /> ended</label>
        <select aria-label=${`What criterion ${i + 1} does`}
          onChange=${(event) => change(i, { action: event.target.value })}>${[
          ["pause", "pause"],
          ["cancel", "cancel"],
        ].map(
          ([value, text]) =>
            html`<option key=${value} value=${value} selected=${one.action === value}>${text}</option>`,
        )}</select>
        <button type="button" class="quiet" aria-label=${`Remove criterion ${i + 1}`} title="Remove"
          onClick=${() => setCriteria(criteria.filter((_, j) => j !== i))}>✕</button>
        ${said && html`<p class="field-error" id=${`abort-${i}-error`}>${said}</p>`}
      </li>`;
    })}</ol>
    <button type="button" class="quiet"
      onClick=${() => setCriteria([...criteria, { on: "all", threshold: "50", sample: "20", action: "cancel" }])}>Add a criterion</button>
  </fieldset>`;
}
