// One device: what it is, how it got on, step by step, and what its orchestration did.
import { access } from "../access.js";
import { get, path, post } from "../api.js";
import { Dialog, Field } from "../dialog.js";
import { Gantt } from "../gantt.js";
import { bytes, duration, percent } from "../format.js";
import { useQuery } from "../live.js";
import { link } from "../router.js";
import { IN_WORK, label } from "../states.js";
import { Empty, Heading, Loaded, State, Time, announce, html, useEffect, useRef, useState } from "../ui.js";
import { HistoryOf, RaiseEvent } from "./instance_parts.js";

const EVENTS = [
  "DownloadCompletedAck",
  "DownloadFailed",
  "PackageRejected",
  "ActivationCompleted",
  "ActivationFailed",
];

export function Device({ id }) {
  const device = useQuery(path`/api/devices/${id}`, {
    on: { devices: ({ devices }) => devices.some(([changed]) => changed === id) },
    minimumMs: 400,
  });
  const [dialog, setDialog] = useState(null);
  const it = device.data;
  const before = useRef(null);
  useEffect(() => {
    if (!it) return;
    document.title = `${label(it.state)} · ${id} · Muster`;
    if (before.current && before.current !== it.state) announce(`${id} is ${label(it.state)} now.`);
    before.current = it.state;
  }, [it?.state]);
  const busy = it && IN_WORK.includes(it.state);
  const actions =
    it &&
    !access.readOnly &&
    html`<div class="verbs" role="group" aria-label="What may be done">
    <button type="button" class=${busy ? "" : "primary"} disabled=${busy} onClick=${() => setDialog("retry")}>
      ${it.state === "new" ? "Provision" : it.state === "provisioned" ? "Provision again" : "Retry"}</button>
    <button type="button" disabled=${!busy} onClick=${() => setDialog("raise")}>Raise event</button>
  </div>`;
  return html`<${Heading} kicker=${html`<a href="#/devices">Device</a>`} aside=${actions}>${id}<//>
    <${Loaded} query=${device} lines=${8}>
      ${() => html`
        <section class="panel" aria-label="State">
          <div class="lead">
            <span class="big"><${State} state=${it.state} /></span>
            <span class="presence" data-online=${it.online ? "yes" : "no"}>
              <span class="dot" aria-hidden="true"></span>${it.online ? "online" : "offline"}</span>
            ${it.revoked && html`<span class="bad-text">revoked</span>`}
            ${it.attempt > 0 && html`<span class="faint">attempt ${it.attempt}</span>`}
            ${it.state === "downloading" && it.progress != null && html`<span>
              ${percent(it.progress)} downloaded</span>`}
            ${it.retrying_at && html`<span>next attempt at <${Time}
              at=${it.retrying_at} /> after ${label(it.retrying_after ?? "a failure")}</span>`}
          </div>
          ${it.error && html`<p class="bad-text">${it.error}</p>`}
          <${Identity} device=${it} />
        </section>
        <section aria-labelledby="steps"><h2 id="steps">Time line</h2>
          ${
            it.steps.length === 0
              ? html`<${Empty} title="Nothing was done with it yet"
                command=${`muster provision ${id}`}>Provision it, or <a
                href="#/launch/rollout">roll out</a> to it and others.<//>`
              : html`<${Gantt} steps=${it.steps} progress=${it.progress} ended=${!busy} />`
          }
        </section>
        <div class="columns">
          <div>${it.instance_id && html`<${HistoryOf} id=${it.instance_id}
            version=${`${it.state} ${it.attempt} ${it.steps.length}`} />`}</div>
          <div><${Earlier} history=${it.history ?? []} /><${Package} of=${it.package} /></div>
        </div>`}
    <//>
    ${
      dialog === "retry" &&
      html`<${Provision} id=${id} onClose=${() => setDialog(null)} after=${() => {
        announce(`${id} is provisioned once more.`);
        device.reload();
      }} />`
    }
    ${dialog === "raise" && html`<${RaiseEvent} id=${it.instance_id} names=${EVENTS}
      onClose=${() => setDialog(null)} after=${device.reload} />`}`;
}

function Identity({ device }) {
  const tags = Object.entries(device.tags ?? {});
  const rollout = device.run_id?.startsWith("rollout-");
  return html`<dl class="pairs">
    <div><dt>Model</dt><dd>${device.model ?? "–"}</dd></div>
    <div><dt>Firmware</dt><dd>${device.firmware_version ?? "–"}</dd></div>
    <div><dt>Registered</dt><dd><${Time} at=${device.registered_at} /></dd></div>
    <div><dt>Changed</dt><dd><${Time} at=${device.updated_at} /></dd></div>
    <div><dt>${rollout ? "Rollout" : "Run"}</dt><dd>${device.run_id ? html`<a
      href=${link(rollout ? "rollouts" : "runs", device.run_id)}>${device.run_id}</a>` : "none yet"}</dd></div>
    <div><dt>Tags</dt><dd>${tags.length === 0 ? "none" : tags.map(([name, value]) => html`<span class="tag"
      key=${name}>${name}=${value}</span>`)}</dd></div>
  </dl>`;
}

function Earlier({ history }) {
  return html`<section aria-labelledby="earlier"><h2 id="earlier">Its runs</h2>
    ${
      history.length === 0
        ? html`<p class="faint">None has ended.</p>`
        : html`<table class="rows"><caption
          class="visually-hidden">Runs of the device, the latest first</caption>
          <thead><tr><th scope="col">Run</th><th scope="col">Ended as</th>
            <th scope="col" class="num">Attempts</th><th scope="col" class="num">Took</th></tr></thead>
          <tbody>${history.map(
            (one) => html`<tr key=${one.run_id}>
              <th scope="row"><a
                href=${link(one.run_id.startsWith("rollout-") ? "rollouts" : "runs", one.run_id)}>
                ${one.run_id}</a><br /><span class="faint"><${Time} at=${one.ended_at} /></span></th>
              <td><${State} state=${one.state} />${one.error && html`<br /><span class="faint">${one.error}
                </span>`}</td>
              <td class="num">${one.attempts}</td><td class="num">${duration(one.device_s)}</td>
            </tr>`,
          )}</tbody></table>`
    }
  </section>`;
}

function Package({ of: it }) {
  if (!it) return null;
  return html`<section aria-labelledby="package"><h2 id="package">Package</h2>
    <dl class="pairs single">
      <div><dt>Release</dt><dd>${it.release}</dd></div>
      <div><dt>Size</dt><dd>${bytes(it.size_bytes)}</dd></div>
      <div><dt>SHA-256</dt><dd class="id">${it.sha256}</dd></div>
      <div><dt>URL</dt><dd class="id">${it.url}</dd></div>
    </dl>
  </section>`;
}

function Provision({ id, onClose, after }) {
  const releases = useQuery("/api/releases", { fetcher: get });
  const action = ({ release }) => post("/api/provision", { device_ids: [id], ...(release && { release }) });
  return html`<${Dialog} title=${`Provision ${id}?`} verb="Provision" action=${action} after=${after}
    onClose=${onClose}>
    <p>It gets a fresh package and all its attempts again, in a run of its own.</p>
    <${Field} name="release" title="Release" wide>${(a) => html`<select ...${a} name="release">
      <option value="">the service's own</option>
      ${(releases.data?.releases ?? []).filter((one) => !one.default).map(({ name }) => html`<option
        key=${name} value=${name}>${name}</option>`)}
    </select>`}<//>
  <//>`;
}
