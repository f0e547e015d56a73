// All rollouts, and runs without one.
import { access } from "../access.js";
import { number, plural } from "../format.js";
import { useQuery } from "../live.js";
import { link } from "../router.js";
import { Empty, Heading, Loaded, Stack, Status, Time, html } from "../ui.js";

export function Rollouts() {
  const rollouts = useQuery("/api/rollouts", { on: { rollout: () => true } });
  const runs = useQuery("/api/runs", { on: { run: () => true } });
  const alone = (runs.data?.runs ?? []).filter(({ run_id }) => !run_id.startsWith("rollout-"));
  return html`<${Heading} aside=${
    !access.readOnly && html`<a class="button primary" href="#/launch/rollout">New rollout</a>`
  }>Rollouts<//>
    <${Loaded} query=${rollouts} lines=${6}>
      ${({ rollouts: all }) =>
        all.length === 0
          ? html`<${Empty} title="There was no rollout yet" command="muster rollout create --waves 5%,100%">
              <a href="#/launch/rollout">Plan one</a>: in waves, at a pace, with gates and criteria to abort.
            <//>`
          : html`<div class="scroll" tabindex="0" role="region" aria-label="Rollouts"><table class="rows">
              <caption class="visually-hidden">Rollouts, the latest first</caption>
              <thead><tr>
                <th scope="col">Rollout</th><th scope="col">State</th><th scope="col" class="wide">Progress</th>
                <th scope="col" class="num">Devices</th><th scope="col">Release</th>
                  <th scope="col">Created</th><th scope="col">Ended</th>
              </tr></thead>
              <tbody>${all.map(
                (one) => html`<tr key=${one.rollout_id}>
                  <th scope="row"><a href=${link("rollouts", one.rollout_id)}>${one.name ?? one.rollout_id}</a>
                    ${one.name && html`<br /><span class="faint id">${one.rollout_id}</span>`}</th>
                  <td><${Status} status=${one.state} /></td>
                  <td class="wide"><${Stack} counts=${one.counts} total=${one.devices}
                    name=${`Progress of ${one.name ?? one.rollout_id}`} thin /></td>
                  <td class="num">${number(one.devices)}</td>
                  <td>${one.release ?? html`<span class="faint">the service's own</span>`}</td>
                  <td><${Time} at=${one.created_at} /></td><td><${Time} at=${one.ended_at} /></td>
                </tr>`,
              )}</tbody>
            </table></div>`}
    <//>
    ${
      alone.length > 0 &&
      html`<section aria-labelledby="runs">
      <h2 id="runs">Runs without a rollout</h2>
      <p class="faint">By <code>muster provision</code>, or a retry of one device.</p>
      <table class="rows">
        <caption class="visually-hidden">Runs, the latest first</caption>
        <thead><tr><th scope="col">Run</th><th scope="col">State</th><th scope="col" class="num">Devices</th>
          <th scope="col">Started</th><th scope="col">Ended</th></tr></thead>
        <tbody>${alone.map(
          (run) => html`<tr key=${run.run_id}>
            <th scope="row"><a href=${link("runs", run.run_id)}>${run.run_id}</a></th>
            <td><${Status} status=${run.status} /></td><td class="num">${number(run.devices)}</td>
            <td><${Time} at=${run.started_at} /></td><td><${Time} at=${run.ended_at} /></td>
          </tr>`,
        )}</tbody>
      </table>
      <p class="faint">${plural(alone.length, "run")}</p>
    </section>`
    }`;
}
