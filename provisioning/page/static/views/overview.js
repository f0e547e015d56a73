// What goes on: rollouts that run, the fleets, what failed lately.
import { access } from "../access.js";
import { remove, path } from "../api.js";
import { Dialog } from "../dialog.js";
import { number, percent, plural } from "../format.js";
import { useEvent, useQuery } from "../live.js";
import { link } from "../router.js";
import { IN_WORK, label } from "../states.js";
import {
  Counts,
  Empty,
  Figure,
  Heading,
  Loaded,
  Pace,
  Prose,
  Sign,
  Stack,
  Status,
  Time,
  html,
  useEffect,
  useState,
} from "../ui.js";

export function Overview() {
  const overview = useQuery("/api/overview", {
    on: { rollout: (r) => !known(r), run: () => true, fleet: () => true, devices: () => true },
    minimumMs: 1500,
  });
  const [fresh, setFresh] = useState({});
  const known = (rollout) => overview.data?.rollouts.some((one) => one.rollout_id === rollout.rollout_id);
  useEvent("rollout", (rollout) => setFresh((before) => ({ ...before, [rollout.rollout_id]: rollout })));
  useEffect(() => setFresh({}), [overview.data]);
  return html`<${Heading}
      aside=${!access.readOnly && html`<a class="button primary" href="#/launch/rollout">New rollout</a>`}
    >Overview<//>
    <${Loaded} query=${overview} lines=${8}>
      ${(data) => html`
        <${Numbers} data=${data} />
        <div class="columns">
          <div>
            <${Rollouts} rollouts=${data.rollouts.map((one) => fresh[one.rollout_id] ?? one)}
              runs=${data.runs} fleets=${data.fleets} />
          </div>
          <div>
            <${Fleets} fleets=${data.fleets} reload=${overview.reload} />
            <${Failures} failures=${data.failures} />
            <${Health} health=${data.health} />
          </div>
        </div>
      `}
    <//>`;
}

function Numbers({ data }) {
  const { states } = data;
  const work = IN_WORK.reduce((sum, state) => sum + (states[state] ?? 0), 0);
  const bad = (states.failed ?? 0) + (states.timed_out ?? 0) + (states.rejected ?? 0);
  return html`<section class="panel" aria-label="All devices">
    <dl class="figures">
      <${Figure} name="Devices" value=${number(data.devices)} />
      <${Figure} name="Online" value=${number(data.online)}
        unit=${data.devices > 0 ? percent((100 * data.online) / data.devices) : null} />
      <${Figure} name="In work" value=${number(work)} />
      <${Figure} name="Provisioned" value=${number(states.provisioned ?? 0)}
        unit=${data.devices > 0 ? percent((100 * (states.provisioned ?? 0)) / data.devices) : null} />
      <${Figure} name="Failed" value=${number(bad)} hint="failed, timed out or rejected" />
      <${Figure} name="New" value=${number(states.new ?? 0)} />
    </dl>
    <${Stack} counts=${states} total=${data.devices} name="All devices" thin />
  </section>`;
}

function Rollouts({ rollouts, runs, fleets }) {
  const open = rollouts.filter((one) => !one.ended_at);
  const ended = rollouts.filter((one) => one.ended_at);
  const openRuns = runs.filter((one) => !one.ended_at);
  const endedRuns = runs.filter((one) => one.ended_at);
  return html`<section aria-labelledby="running">
      <h2 id="running">Running</h2>
      ${
        open.length + openRuns.length === 0 &&
        html`<${Empty} title="No rollout is running"
        command=${fleets.length === 0 ? "muster fleet launch --count 200" : "muster rollout create --waves 5%,100%"}>
        ${
          fleets.length === 0
            ? html`First <a href="#/launch/fleet">launch a fleet</a>, then <a
              href="#/launch/rollout">roll something out</a> to it.`
            : html`<a
              href="#/launch/rollout">Start a rollout</a>: its plan is shown as it will run, before anything starts.`
        }
      <//>`
      }
      ${open.map((one) => html`<${Card} key=${one.rollout_id} of=${one}
        address=${link("rollouts", one.rollout_id)} id=${one.rollout_id} status=${one.state} />`)}
      ${openRuns.map((one) => html`<${Card} key=${one.run_id} of=${one} address=${link("runs", one.run_id)}
        id=${one.run_id} status=${one.status} />`)}
    </section>
    ${
      ended.length + endedRuns.length > 0 &&
      html`<section aria-labelledby="ended">
      <h2 id="ended">Ended lately</h2>
      ${[
        ...ended.map((one) => [one, "rollouts", one.rollout_id, one.state]),
        ...endedRuns.map((one) => [one, "runs", one.run_id, one.status]),
      ]
        .sort((a, b) => (a[0].ended_at < b[0].ended_at ? 1 : -1))
        .slice(0, 6)
        .map(
          ([one, area, id, status]) =>
            html`<${Card} key=${id} of=${one} address=${link(area, id)} id=${id} status=${status} />`,
        )}
      <p><a href="#/rollouts">All rollouts and runs</a></p>
    </section>`
    }`;
}

export function Card({ of: one, address, id, status }) {
  return html`<article class="card">
    <div class="card-head">
      <h3><a href=${address}>${one.name ?? id}</a></h3>
      <${Status} status=${status} />
      ${one.name && html`<span class="faint id">${id}</span>`}
      <span class="card-end"><${Pace} of=${one} /></span>
    </div>
    <${Stack} counts=${one.counts} total=${one.devices} name=${`Progress of ${one.name ?? id}`} />
    <div class="card-foot">
      <${Counts} counts=${one.counts} />
      <span class="faint">
        ${Array.isArray(one.waves) && one.waves.length > 1 && !one.ended_at && `wave ${one.wave} of ${one.waves.length} · `}
        ${plural(one.devices, "device")}
      </span>
    </div>
    ${one.reason && html`<p class="faint"><${Prose} text=${one.reason} /></p>`}
  </article>`;
}

function Fleets({ fleets, reload }) {
  const [stopping, setStopping] = useState(null);
  return html`<section aria-labelledby="fleets">
    <h2 id="fleets">Fleets</h2>
    ${
      fleets.length === 0
        ? html`<${Empty} title="No fleet runs" command="muster fleet launch --count 200">
          <a href="#/launch/fleet">Launch one</a>: devices that connect, download, and misbehave as real ones do.
        <//>`
        : html`<table class="rows">
          <caption class="visually-hidden">Fleets with their devices</caption>
          <thead><tr><th scope="col">Fleet</th><th scope="col" class="num">Connected</th>
            <th scope="col">State</th><th scope="col"><span class="visually-hidden">Actions</span></th></tr>
            </thead>
          <tbody>
            ${fleets.map(
              (fleet) => html`<tr key=${fleet.fleet_id}>
                <th scope="row">${fleet.fleet_id}</th>
                <td class="num">${number(fleet.connected)} of ${number(fleet.devices)}</td>
                <td>
                  <${Status} status=${fleet.running ? "running" : "failed"} />
                  ${fleet.error && html`<p class="bad-text">${fleet.error}</p>`}
                </td>
                <td class="end">
                  ${
                    !access.readOnly &&
                    html`<button type="button" class="quiet" onClick=${() => setStopping(fleet)}
                    aria-label=${`Stop ${fleet.fleet_id}`}>Stop</button>`
                  }
                </td>
              </tr>`,
            )}
          </tbody>
        </table>`
    }
    ${
      stopping &&
      html`<${Dialog} title=${`Stop ${stopping.fleet_id}?`} verb="Stop the fleet" danger
      action=${() => remove(path`/api/fleets/${stopping.fleet_id}`)} after=${reload}
        onClose=${() => setStopping(null)}>
      <p>Its ${plural(stopping.devices, "device")} disconnect and are switched off. What is on record of them stays.</p>
    <//>`
    }
  </section>`;
}

function Failures({ failures }) {
  return html`<section aria-labelledby="failures">
    <h2 id="failures">Latest failures</h2>
    ${
      failures.length === 0
        ? html`<p class="faint">None.</p>`
        : html`<table class="rows reasons">
          <caption class="visually-hidden">Reasons of failures, the latest first</caption>
          <thead><tr><th scope="col">Reason</th><th scope="col" class="num">Devices</th></tr></thead>
          <tbody>
            ${failures.map(
              (one) => html`<tr key=${`${one.state} ${one.reason} ${one.run_id}`}>
                <td>
                  <span class="reason"><${Sign} state=${one.state} /><span><span class="visually-hidden">
                    ${label(one.state)}: </span>${one.reason ?? label(one.state)}</span></span>
                  <span class="faint">such as <a href=${link("devices", one.example)}>${one.example}
                    </a>, <${Time} at=${one.last_at} /></span>
                </td>
                <td class="num">${number(one.count)}</td>
              </tr>`,
            )}
          </tbody>
        </table>`
    }
  </section>`;
}

function Health({ health }) {
  const parts = [
    ["Broker", health.broker?.connected, health.broker?.url],
    ["Blob storage", health.blob?.reachable, health.blob?.endpoint],
  ];
  return html`<section aria-labelledby="health">
    <h2 id="health">Service</h2>
    <ul class="health" role="list">
      ${parts.map(
        ([name, well, where]) => html`<li key=${name}>
          <${Sign} state=${well ? "provisioned" : "failed"} /><span>${name} <b>
            ${well ? "is there" : "does not answer"}</b></span>
          <span class="faint id">${where}</span>
        </li>`,
      )}
      <li><${Sign} state="provisioned" /><span>Muster ${health.version} since <${Time}
        at=${health.started_at} /></span></li>
    </ul>
  </section>`;
}
