// A run without a rollout: `muster provision`.
import { get, path, query } from "../api.js";
import { SeriesCharts } from "../charts.js";
import { number, duration, percent } from "../format.js";
import { useQuery } from "../live.js";
import { link } from "../router.js";
import {
  Counts,
  Empty,
  Figure,
  Heading,
  Loaded,
  Pace,
  Sign,
  Stack,
  Status,
  Time,
  html,
  useEffect,
} from "../ui.js";
import { ended } from "./rollout_parts.js";

export function Run({ id }) {
  const mine = (run) => run.run_id === id;
  const devices = ({ devices: changed }) => changed.some(([, , run_id]) => run_id === id);
  const run = useQuery(path`/api/runs/${id}`, { on: { run: mine, devices } });
  const series = useQuery(path`/api/runs/${id}/series`, { on: { run: mine }, minimumMs: 3000 });
  const list = useQuery(`/api/devices${query({ run_id: id, limit: 20 })}`, { on: { devices }, fetcher: get });
  useEffect(() => {
    if (run.data)
      document.title = `${percent((100 * ended(run.data.counts)) / Math.max(run.data.devices, 1))} · ${id} · Muster`;
  }, [run.data]);
  return html`<${Heading} kicker=${html`<a href="#/rollouts">Run</a>`}>${id}<//>
    <${Loaded} query=${run} lines=${6}>
      ${(it) => html`<section class="panel" aria-label="Progress">
          <p><${Status} status=${it.status} /> <${Pace} of=${it} /></p>
          <${Stack} counts=${it.counts} total=${it.devices} name="Progress of the run" />
          <${Counts} counts=${it.counts} />
          <dl class="figures">
            <${Figure} name="Devices" value=${number(it.devices)} />
            <${Figure} name="Half of them within" value=${duration(it.percentiles.device.p50_s)} />
            <${Figure} name="95 % within" value=${duration(it.percentiles.device.p95_s)} />
            <${Figure} name="Started" value=${html`<${Time} at=${it.started_at} />`} />
            <${Figure} name="Ended" value=${html`<${Time} at=${it.ended_at} />`} />
          </dl>
          <p><a href=${link("orchestrations", id)}>Its orchestration</a></p>
        </section>
        ${series.data && html`<${SeriesCharts} series=${series.data} />`}
        <section aria-labelledby="run-devices"><h2 id="run-devices">Devices</h2>
          ${list.data?.devices.length === 0 && html`<${Empty} title="None is of this run any more" />`}
          <table class="rows"><caption class="visually-hidden">Devices of the run</caption>
            <thead><tr><th scope="col">Device</th><th scope="col">State</th><th scope="col">Error</th></tr>
              </thead>
            <tbody>${(list.data?.devices ?? []).map(
              (
                d,
              ) => html`<tr key=${d.device_id}><th scope="row"><a href=${link("devices", d.device_id)}>
                ${d.device_id}</a></th>
                <td><span class="state"><${Sign} state=${d.state} />${d.state.replace("_", " ")}</span></td>
                  <td>${d.error}</td></tr>`,
            )}</tbody></table>
          ${list.data?.next && html`<p><a
            href=${`#/devices${query({ run_id: id })}`}>All ${number(list.data.total)}</a></p>`}
        </section>`}
    <//>`;
}
