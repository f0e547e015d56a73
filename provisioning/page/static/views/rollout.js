// A rollout as it runs: progress, waves, charts, a cell per device, what operators may do, the log.
import { path } from "../api.js";
import { CellMap } from "../cells.js";
import { useCells } from "../cells_live.js";
import { SeriesCharts } from "../charts.js";
import { duration, number, percent } from "../format.js";
import { useEvent, useQuery } from "../live.js";
import { go, link } from "../router.js";
import {
  Counts,
  Figure,
  Heading,
  Loaded,
  Pace,
  Prose,
  Skeleton,
  Stack,
  Status,
  Time,
  announce,
  html,
  useEffect,
  useRef,
  useState,
} from "../ui.js";
import { Verbs } from "./rollout_verbs.js";
import { Log, Members, Reasons, Waves, ended } from "./rollout_parts.js";

export function Rollout({ id }) {
  const mine = (rollout) => rollout.rollout_id === id;
  const whole = useQuery(path`/api/rollouts/${id}`, { on: { rollout: mine }, minimumMs: 1500 });
  const [event, setEvent] = useState(null);
  useEvent("rollout", (data) => mine(data) && setEvent(data));
  useEffect(() => setEvent(null), [whole.data]);
  // An event is newer than the answer that came before it, and has all that changes fast.
  const rollout = whole.data && event ? { ...whole.data, ...event, plan: whole.data.plan } : whole.data;
  const log = useQuery(path`/api/rollouts/${id}/log`, { on: { rollout: mine }, minimumMs: 2000 });
  const series = useQuery(path`/api/rollouts/${id}/series`, { on: { rollout: mine }, minimumMs: 3000 });
  const share = rollout ? (100 * ended(rollout.counts)) / Math.max(rollout.devices, 1) : null;
  const state = rollout?.state;
  const before = useRef(state);
  useEffect(() => {
    if (rollout) document.title = `${percent(share)} · ${rollout.name ?? id} · Muster`;
  }, [rollout && percent(share)]);
  useEffect(() => {
    if (before.current && state && before.current !== state)
      announce(`The rollout is ${state.replace("_", " ")} now.`);
    before.current = state;
  }, [state]);
  return html`<${Heading}
      kicker=${html`<a href="#/rollouts">Rollout</a>${rollout?.name && html` · <span class="id">${id}</span>`}`}
      aside=${
        rollout &&
        html`<${Verbs} rollout=${rollout} changed=${() => {
          whole.reload();
          log.reload();
        }} />`
      }
    >${rollout?.name ?? id}<//>
    <${Loaded} query=${whole} lines=${8}>
      ${() => html`
        <section class="panel" aria-label="Progress">
          <div class="lead">
            <span class="big">${percent(share)}</span>
            <${Status} status=${rollout.state} />
            <${Pace} of=${rollout} />
            ${rollout.reason && html`<span class="faint"><${Prose} text=${rollout.reason} /></span>`}
          </div>
          <${Stack} counts=${rollout.counts} total=${rollout.devices} name="Progress of the rollout" />
          <${Counts} counts=${rollout.counts} />
          <${Waits} rollout=${rollout} />
        </section>
        <${Facts} rollout=${rollout} />
        <section aria-labelledby="cells"><h2 id="cells">A cell per device</h2><${DeviceMap} id=${id} />
          </section>
        ${series.data ? html`<${SeriesCharts}
          series=${series.data} />` : !series.error && html`<${Skeleton} tall />`}
        <div class="columns">
          <div><${Waves} rollout=${rollout} /><${Members} rollout=${rollout} /></div>
          <div><${Reasons} rollout=${rollout} /><${Log} log=${log} /></div>
        </div>
      `}
    <//>`;
}

function Facts({ rollout }) {
  const pace = rollout.plan.pace;
  return html`<dl class="figures">
    <${Figure} name="Devices" value=${number(rollout.devices)} />
    <${Figure} name="In flight" value=${number(rollout.in_flight ?? 0)}
      unit=${`of ${number(pace.in_flight)}`} />
    <${Figure} name="Rate" value=${number(rollout.devices_per_s ?? 0, 1)} unit="/s" />
    <${Figure} name=${rollout.ended_at ? "Took" : "Runs for"} value=${duration(rollout.elapsed_s)} />
    <${Figure} name="Release" value=${rollout.release ?? "own"}
      hint=${rollout.release ? undefined : "the release that comes with the service"} />
    <${Figure} name="Created" value=${html`<${Time} at=${rollout.created_at} />`} />
    ${rollout.retry_of && html`<${Figure} name="Retry of" value=${html`<a
      href=${link("rollouts", rollout.retry_of)}>${rollout.retry_of}</a>`} />`}
    <${Figure} name="Orchestration" value=${html`<a
      href=${link("orchestrations", rollout.rollout_id)}>open</a>`} />
  </dl>`;
}

function Waits({ rollout }) {
  const held = rollout.held ?? [];
  if (held.length === 0) return null;
  return html`<ul class="held">${held.map(
    (one) =>
      html`<li key=${one.run_id + one.how}>
        ${number(one.devices)} ${one.how === "join" ? "share the outcome of" : "wait for"} ${one.run_id}</li>`,
  )}</ul>`;
}

function DeviceMap({ id }) {
  const { cells, version, error } = useCells(path`/api/rollouts/${id}/cells`, id);
  if (!cells)
    return error
      ? html`<p class="faint">The cells can't be had: ${error.message}</p>`
      : html`<${Skeleton} tall />`;
  return html`<${CellMap} cells=${cells} version=${version} name="Devices of the rollout"
    open=${(device) => go(link("devices", device))} />`;
}
