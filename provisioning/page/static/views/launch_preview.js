// A plan as it will run: its waves with their sizes and gates, what bounds its pace, what is in its way.
import { duration, number, plural } from "../format.js";
import { Prose, html } from "../ui.js";
import { gateOf } from "./rollout_parts.js";

export function Preview({ preview, pending, busy, asked }) {
  const { answer, error } = preview;
  const devices = answer?.devices ?? 0;
  const can = answer && !error && (devices > 0 || asked.targets?.continuous);
  return html`<h2 id="plan-title">The plan as it will run</h2>
    <div class="preview" aria-busy=${pending}>
      ${error && html`<div class="note" data-kind="bad"><p><strong>${error.key ?? error.title}
        </strong> <${Prose}
        text=${error.key ? error.message.slice(error.message.indexOf(": ") + 2) : error.message} /></p></div>`}
      ${answer && !error && html`<${Waves} answer=${answer} />`}
      ${!answer && !error && html`<p class="faint">One moment…</p>`}
      <p class="visually-hidden" role="status">
        ${pending ? "" : error ? error.message : answer ? `${plural(devices, "device")} in ${plural(answer.waves.length, "wave")}` : ""}
        </p>
    </div>
    <div class="form-end"><button type="submit" class="primary" disabled=${!can && !busy}
      aria-disabled=${busy}>${busy ? "Starting…" : `Start with ${plural(devices, "device")}`}</button></div>
    ${answer && !error && devices === 0 && !asked.targets?.continuous && html`<p
      class="hint">No device is like that now: <a
      href="#/launch/fleet">launch a fleet</a>, or choose others.</p>`}
    <details class="plan-json"><summary>As a plan file</summary>
      <pre tabindex="0" aria-label="The plan as JSON">${JSON.stringify(asked, null, 2)}</pre>
      <p class="hint">Saved as plan.json: <code>muster rollout create --file plan.json</code></p></details>`;
}

function Waves({ answer }) {
  const { plan, waves, devices, held, not_fitting } = answer;
  const largest = Math.max(1, ...waves);
  const { per_minute, in_flight } = plan.pace;
  const floor_s = typeof per_minute === "number" && devices > 0 ? (60 * devices) / per_minute : null;
  const clock = plan.schedule;
  return html`<ol class="plan-waves" role="list">
      ${clock.start_at && html`<li class="gate">starts at ${new Date(clock.start_at).toLocaleString("en-GB")}
        </li>`}
      ${waves.map(
        (size, i) => html`<li key=${i}>
          <div class="plan-wave"><span>Wave ${i + 1}</span><span class="plan-bar">
            <span style=${{ width: `${(100 * size) / largest}%` }}></span></span><b class="num">
            ${number(size)}</b></div>
          ${gateOf(plan.waves[i]) && html`<div class="gate">${gateOf(plan.waves[i])}</div>`}
        </li>`,
      )}
    </ol>
    <dl class="pairs single">
      <div><dt>Devices</dt><dd>
        ${number(devices)}${plan.targets.continuous ? ", and those that register later" : ""}</dd></div>
      <div><dt>Pace</dt><dd>
        ${number(in_flight)} at once, ${per_minute === null ? "no limit a minute" : typeof per_minute === "number" ? `${number(per_minute)} a minute` : `growing from ${number(per_minute.base)} a minute`}
        </dd></div>
      ${floor_s !== null && html`<div><dt>Takes at least</dt><dd>${duration(floor_s)}</dd></div>`}
      <div><dt>Release</dt><dd>${plan.release ?? "the service's own"}</dd></div>
      <div><dt>Aborts</dt><dd>
        ${plan.abort.length === 0 ? "never" : plan.abort.map((one) => `${one.action}s from ${number(one.threshold_percent)} % ${one.on === "all" ? "not provisioned" : one.on.replace("_", " ")} of ${number(one.min_sample)} or more`).join("; ")}
        </dd></div>
      ${clock.windows.length > 0 && html`<div><dt>Within</dt><dd>
        ${clock.windows.map((one) => `${one.from} to ${one.to} UTC`).join(", ")}</dd></div>`}
    </dl>
    ${misfits(not_fitting) > 0 && html`<div class="note" data-kind="hold">
      <p>The release does not fit ${plural(misfits(not_fitting), "device")}: they end as rejected.</p></div>`}
    ${held.length > 0 && html`<div class="note" data-kind="hold">
      ${held.map((one) => html`<p key=${one.run_id}>
      ${plural(one.devices, "device")} ${one.how === "join" ? "share the outcome of" : "wait for"} ${one.run_id}.</p>`)}
      </div>`}`;
}

function misfits(found) {
  return typeof found === "number" ? found : Number(found?.devices ?? 0);
}
