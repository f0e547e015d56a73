// Parts of a rollout's view: its waves, reasons, plan, log and devices.
import { path, query } from "../api.js";
import { duration, number, percent } from "../format.js";
import { useQuery } from "../live.js";
import { link } from "../router.js";
import { STATES, label } from "../states.js";
import { Loaded, Prose, Sign, Stack, State, Status, Time, html, useState } from "../ui.js";

/** How many of the counts have ended. */
export function ended(counts) {
  return Object.entries(counts).reduce((sum, [state, n]) => sum + (STATES[state]?.final ? n : 0), 0);
}

export function Waves({ rollout }) {
  const waves = rollout.plan?.waves ?? [];
  return html`<section aria-labelledby="waves">
    <h2 id="waves">Waves</h2>
    <div class="scroll" tabindex="0" role="region" aria-label="Waves"><table class="rows">
      <caption class="visually-hidden">Waves with their progress</caption>
      <thead><tr><th scope="col">Wave</th><th scope="col">State</th><th scope="col" class="wide">Progress</th>
        <th scope="col" class="num">Devices</th><th scope="col" class="num">Successes</th></tr></thead>
      <tbody>${rollout.waves.map((wave) => {
        const planned = waves[wave.number - 1] ?? {};
        return html`<tr key=${wave.number}
          data-present=${wave.number === rollout.wave && !rollout.ended_at ? "yes" : undefined}>
          <th scope="row">${wave.number}</th>
          <td><${Status} status=${wave.state} /></td>
          <td class="wide"><${Stack} counts=${wave.counts} total=${wave.devices}
            name=${`Progress of wave ${wave.number}`} />
            ${gateOf(planned) && html`<span class="faint">${gateOf(planned)}</span>`}</td>
          <td class="num">${number(ended(wave.counts))} of ${number(wave.devices)}</td>
          <td class="num">${wave.success_percent == null ? "–" : percent(wave.success_percent)}</td>
        </tr>`;
      })}</tbody>
    </table></div>
  </section>`;
}

/** What stands between a wave and the next, in words. */
export function gateOf(wave) {
  const parts = [];
  if (wave.success_threshold_percent != null)
    parts.push(`goes on from ${number(wave.success_threshold_percent)} % successes`);
  if (wave.gate === "approval") parts.push("then awaits an approval");
  if (wave.gate === "pause") parts.push(`then pauses for ${duration(wave.pause_s)}`);
  return parts.join(", ");
}

export function Reasons({ rollout }) {
  if (!rollout.reasons?.length) return null;
  return html`<section aria-labelledby="reasons">
    <h2 id="reasons">What went wrong</h2>
    <table class="rows reasons">
      <caption class="visually-hidden">Reasons, the most frequent first</caption>
      <thead><tr><th scope="col">Reason</th><th scope="col" class="num">Devices</th></tr></thead>
      <tbody>${rollout.reasons.map(
        (one) => html`<tr key=${`${one.state} ${one.reason}`}>
          <td><span class="reason"><${Sign} state=${one.state} /><span><span class="visually-hidden">
            ${label(one.state)}: </span>${one.reason ?? label(one.state)}</span></span>
            <span class="faint">such as <a href=${link("devices", one.example)}>${one.example}</a></span></td>
          <td class="num">${number(one.count)}</td>
        </tr>`,
      )}</tbody>
    </table>
  </section>`;
}

export function Log({ log }) {
  return html`<section aria-labelledby="log">
    <h2 id="log">Log</h2>
    <${Loaded} query=${log} lines=${4}>
      ${({ log: entries }) =>
        html`<ol class="log" role="list">${[...entries].reverse().map(
          (entry, i) => html`<li key=${entries.length - i}>
          <${Time} at=${entry.at} /> <b>${entry.what}</b> <span class="faint">by ${entry.actor}</span>
          ${entry.detail != null && entry.detail !== "" && html`<div>${detail(entry.detail)}</div>`}
        </li>`,
        )}</ol>`}
    <//>
  </section>`;
}

function detail(value) {
  return html`<${Prose} text=${typeof value === "string" ? value : JSON.stringify(value)} />`;
}

const SHOWN = ["failed", "timed_out", "rejected", "provisioned", "cancelled", "pending"];

/** A rollout's devices as a table, by state and wave: what the map of cells shows, in words. */
export function Members({ rollout }) {
  const [state, setState] = useState(SHOWN.find((one) => rollout.counts[one] > 0) ?? "");
  const [pages, setPages] = useState([null]);
  const address =
    path`/api/rollouts/${rollout.rollout_id}/devices` + query({ state, after: pages.at(-1), limit: 25 });
  const list = useQuery(address, { on: { devices: () => true }, minimumMs: 2500 });
  const choose = (event) => {
    setState(event.target.value);
    setPages([null]);
  };
  return html`<section aria-labelledby="members">
    <div class="section-head"><h2 id="members">Devices</h2>
      <label class="inline">State <select value=${state} onChange=${choose}>
        <option value="">all</option>
        ${Object.keys(rollout.counts).map((one) => html`<option key=${one} value=${one}>${label(one)}
          </option>`)}
      </select></label></div>
    <${Loaded} query=${list} lines=${6}>
      ${(
        page,
      ) => html`<div class="scroll" tabindex="0" role="region" aria-label="Devices of the rollout">
        <table class="rows">
          <caption class="visually-hidden">Devices of the rollout</caption>
          <thead><tr><th scope="col">Device</th><th scope="col">State</th><th scope="col" class="num">Wave</th>
            <th scope="col" class="num">Attempts</th><th scope="col" class="num">Took</th>
              <th scope="col">Error</th></tr></thead>
          <tbody>${page.devices.map(
            (one) => html`<tr key=${one.device_id}>
              <th scope="row"><a href=${link("devices", one.device_id)}>${one.device_id}</a></th>
              <td><${State} state=${one.state} />${one.held && html` <span class="faint">
                ${one.held === "join" ? "joins" : "waits for"} ${one.held_by}</span>`}</td>
              <td class="num">${one.wave}</td><td class="num">${one.attempts}</td>
              <td class="num">${duration(one.device_s)}</td><td class="error-cell">${one.error}</td>
            </tr>`,
          )}</tbody></table></div>
        <${Pager} pages=${pages} setPages=${setPages} next=${page.next} total=${page.total} />`}
    <//>
  </section>`;
}

/** From page to page of a list by cursors. */
export function Pager({ pages, setPages, next, total }) {
  return html`<div class="pager">
    <span class="faint">${number(total)} in all</span>
    <button type="button" disabled=${pages.length === 1}
      onClick=${() => setPages(pages.slice(0, -1))}>Back</button>
    <button type="button" disabled=${!next} onClick=${() => setPages([...pages, next])}>Next</button>
  </div>`;
}
