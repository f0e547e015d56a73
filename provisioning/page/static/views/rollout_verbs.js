// What operators may do to a rollout, each asked before it is done.
import { access } from "../access.js";
import { ApiError, path, post } from "../api.js";
import { Dialog, Field } from "../dialog.js";
import { number } from "../format.js";
import { go, link } from "../router.js";
import { announce, html, useState } from "../ui.js";

const OPEN = ["scheduled", "waiting", "running", "paused", "awaiting_approval", "cancelling"];
const VERBS = {
  approve: { name: "Approve", states: ["awaiting_approval"], primary: true, says: "The next wave starts." },
  resume: { name: "Resume", states: ["paused"], primary: true, says: "Devices are started again." },
  pause: {
    name: "Pause",
    states: ["scheduled", "waiting", "running", "awaiting_approval"],
    says: "No further device is started; those in flight finish.",
  },
  next: {
    name: "Next wave",
    states: ["running", "waiting", "awaiting_approval"],
    says: "The next wave may start now, whatever is before it.",
  },
  pace: {
    name: "Pace",
    states: OPEN,
    says: "More or fewer devices at once, or a minute. What is empty stays as it is.",
  },
  add: { name: "Add devices", states: OPEN, says: "They join the last wave." },
  exclude: {
    name: "Exclude devices",
    states: OPEN,
    says: "Devices that were not started yet are taken out.",
  },
  cancel: {
    name: "Cancel",
    states: ["scheduled", "waiting", "running", "paused", "awaiting_approval"],
    danger: true,
    says: "What was not started ends as cancelled; those in flight finish.",
  },
  force_cancel: {
    name: "Cancel by force",
    states: OPEN,
    danger: true,
    says: "What was not started ends as cancelled, and the provisioning of those in flight ends at once.",
  },
};
const FIRST = ["approve", "resume", "pause", "next", "cancel"];

export function Verbs({ rollout, changed }) {
  const [verb, setVerb] = useState(null);
  if (access.readOnly) return null;
  const may = Object.keys(VERBS).filter((name) => VERBS[name].states.includes(rollout.state));
  const failed = (rollout.counts.failed ?? 0) + (rollout.counts.timed_out ?? 0);
  const others = (rollout.counts.rejected ?? 0) + (rollout.counts.cancelled ?? 0);
  const more = may.filter((name) => !FIRST.includes(name));
  const close = () => setVerb(null);
  return html`<div class="verbs" role="group" aria-label="What may be done">
      ${may
        .filter((name) => FIRST.includes(name))
        .map(
          (
            name,
          ) => html`<button type="button" key=${name}
            class=${VERBS[name].primary ? "primary" : VERBS[name].danger ? "danger-quiet" : ""}
          onClick=${() => setVerb(name)}>${VERBS[name].name}</button>`,
        )}
      ${more.length > 0 && html`<${More} names=${more} choose=${setVerb} />`}
      ${
        rollout.ended_at &&
        html`<button type="button" class="primary" disabled=${failed + others === 0}
          onClick=${() => setVerb("retry")}>
        ${failed > 0 ? `Retry ${number(failed)} failed` : others > 0 ? `Retry ${number(others)}` : "Nothing to retry"}
        </button>`
      }
    </div>
    ${verb === "retry" && html`<${Retry} rollout=${rollout} onClose=${close} />`}
    ${
      verb &&
      verb !== "retry" &&
      html`<${Act} key=${verb} verb=${verb} rollout=${rollout} onClose=${close}
      after=${() => {
        announce(`${VERBS[verb].name}: done`);
        changed();
      }} />`
    }`;
}

/** The rest of the verbs, below a button: a disclosure, since it is a list of buttons and no menu of a program. */
function More({ names, choose }) {
  const [open, setOpen] = useState(false);
  const leave = (event) => {
    if (!event.currentTarget.contains(event.relatedTarget)) setOpen(false);
  };
  return html`<div class="more" onFocusout=${leave}
    onKeyDown=${(event) => event.key === "Escape" && setOpen(false)}>
    <button type="button" aria-expanded=${open} onClick=${() => setOpen(!open)}>More</button>
    ${
      open &&
      html`<div class="more-list">${names.map(
        (name) => html`<button type="button" key=${name} class=${VERBS[name].danger ? "danger-quiet" : ""}
        onClick=${() => {
          setOpen(false);
          choose(name);
        }}>${VERBS[name].name}</button>`,
      )}</div>`
    }
  </div>`;
}

function Act({ verb, rollout, onClose, after }) {
  const { name, says, danger } = VERBS[verb];
  const action = (fields) => {
    const asked = { action: verb, actor: "page" };
    if (fields.reason) asked.reason = fields.reason;
    if (verb === "add" || verb === "exclude") asked.devices = fields.devices.split(/[\s,]+/).filter(Boolean);
    if (verb === "pace") {
      asked.pace = {};
      if (fields.in_flight) asked.pace.in_flight = Number(fields.in_flight);
      if (fields.per_minute) asked.pace.per_minute = Number(fields.per_minute);
    }
    return post(path`/api/rollouts/${rollout.rollout_id}/actions`, asked);
  };
  return html`<${Dialog} title=${`${name}?`} verb=${name} danger=${danger} action=${action} after=${after}
    onClose=${onClose}>
    <p>${says}</p>
    ${
      (verb === "add" || verb === "exclude") &&
      html`<${Field} name="devices" title="Device ids" hint="Separated by spaces, commas or lines." wide>
      ${(a) => html`<textarea ...${a} name="devices" rows="4" required></textarea>`}<//>`
    }
    ${
      verb === "pace" &&
      html`<div class="fields">
      <${Field} name="in_flight" title="At once" hint=${`now ${number(rollout.plan.pace.in_flight)}`}>
        ${(a) => html`<input ...${a} name="in_flight" type="number" min="1" max="1000" />`}<//>
      <${Field} name="per_minute" title="A minute" hint=${paceNow(rollout.plan.pace.per_minute)}>
        ${(a) => html`<input ...${a} name="per_minute" type="number" min="0.001" step="any" />`}<//>
    </div>`
    }
    <${Field} name="reason" title="Reason" hint="For the log; may be empty." wide>
      ${(a) => html`<input ...${a} name="reason" maxlength="500" autocomplete="off" />`}<//>
  <//>`;
}

function paceNow(per_minute) {
  if (per_minute === null) return "now without limit";
  return typeof per_minute === "number"
    ? `now ${number(per_minute)}`
    : `now growing from ${number(per_minute.base)}`;
}

function Retry({ rollout, onClose }) {
  const states = ["failed", "timed_out", "rejected", "cancelled"].filter(
    (state) => rollout.counts[state] > 0,
  );
  const action = (fields) => {
    const chosen = states.filter((state) => fields[state] === "on");
    // Without any the service would take its own choice, which was just unticked.
    if (chosen.length === 0) throw new ApiError("Nothing is chosen", "Tick at least one of the states.");
    return post(path`/api/rollouts/${rollout.rollout_id}/retry`, { actor: "page", states: chosen });
  };
  return html`<${Dialog} title="Retry what did not succeed?" verb="Start the retry" action=${action}
    onClose=${onClose}
    after=${(fresh) => go(link("rollouts", fresh.rollout_id))}>
    <p>A new rollout by the same plan and of the same release, of the devices that ended as:</p>
    <fieldset class="checks"><legend class="visually-hidden">States</legend>
      ${states.map(
        (
          state,
        ) => html`<label key=${state}><input type="checkbox" name=${state}
          checked=${state === "failed" || state === "timed_out"} />
        ${state.replace("_", " ")} (${number(rollout.counts[state])})</label>`,
      )}
    </fieldset>
  <//>`;
}
