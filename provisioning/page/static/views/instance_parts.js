// An orchestration's history, event by event, and events raised from outside.
import { get, path, post } from "../api.js";
import { Dialog, Field } from "../dialog.js";
import { between, duration } from "../format.js";
import { useQuery } from "../live.js";
import { link } from "../router.js";
import { Json, Loaded, Time, announce, html, useEffect, useRef } from "../ui.js";

const INSTANCES = "/runtime/webhooks/durabletask/instances";

export function addressOf(id, what = "") {
  return `${INSTANCES}/${encodeURIComponent(id)}${what}`;
}

export function useInstance(id) {
  // Orchestrations have no events of their own: those of what they work on say that something has happened.
  return useQuery(addressOf(id, "?showHistory=true&showHistoryOutput=true&showInput=true"), {
    fetcher: get,
    minimumMs: 1500,
    on: {
      devices: ({ devices }) => devices.some(([device, , run]) => id === `${run}:${device}`),
      rollout: ({ rollout_id }) => id.startsWith(rollout_id),
      run: ({ run_id }) => id.startsWith(run_id),
    },
  });
}

const KINDS = {
  ExecutionStarted: ["start", "Started"],
  ExecutionCompleted: ["end", "Ended"],
  ExecutionTerminated: ["bad", "Terminated"],
  ExecutionSuspended: ["hold", "Suspended"],
  ExecutionResumed: ["plain", "Resumed"],
  ExecutionRewound: ["hold", "Rewound"],
  TaskScheduled: ["work", "Activity runs"],
  TaskCompleted: ["good", "Activity"],
  TaskFailed: ["bad", "Activity failed"],
  SubOrchestrationInstanceCreated: ["work", "Child runs"],
  SubOrchestrationInstanceCompleted: ["good", "Child"],
  SubOrchestrationInstanceFailed: ["bad", "Child failed"],
  TimerCreated: ["plain", "Timer set"],
  TimerFired: ["plain", "Timer fired"],
  EventRaised: ["event", "Event"],
  EventSent: ["event", "Event sent"],
};

/** The events as they happened; each opens to show what went in and came out. */
export function History({ events }) {
  if (events.length === 0) return html`<p class="faint">It has no history.</p>`;
  const begin = events[0].Timestamp;
  return html`<ol class="history" role="list">${events.map((event, i) => {
    const [kind, text] = KINDS[event.EventType] ?? ["plain", event.EventType];
    const name = event.FunctionName ?? event.Name;
    const took = event.ScheduledTime ? between(event.ScheduledTime, event.Timestamp) : null;
    const failure = event.Reason ?? event.FailureDetails?.ErrorMessage;
    const more = ["Input", "Result", "Details"].filter((key) => event[key] != null && event[key] !== "");
    const line = html`<span class="history-kind" data-kind=${kind}>${text}</span>
      <span class="history-name">${name}${event.OrchestrationStatus && ` as ${event.OrchestrationStatus}`}
        ${event.FireAt && html`<span class="faint">for <${Time} at=${event.FireAt} /></span>`}
        ${failure && html` <span class="bad-text">${failure}</span>`}</span>
      <span class="history-time" title=${event.Timestamp}>${took !== null && html`<b>${duration(took)}
        </b> · `}+${duration(between(begin, event.Timestamp))}</span>`;
    return html`<li key=${i}>
      ${
        more.length === 0
          ? html`<div class="history-line">${line}</div>`
          : html`<details><summary class="history-line">${line}</summary>
            <dl class="io">${more.map((key) => html`<div key=${key}><dt>${key === "Details" ? "Where" : key}
              </dt><dd><${Json} value=${event[key]} name=${key} /></dd></div>`)}
              ${event.InstanceId && html`<div><dt>Instance</dt><dd>
                <a href=${link("orchestrations", event.InstanceId)}>${event.InstanceId}</a></dd></div>`}</dl>
                </details>`
      }
    </li>`;
  })}</ol>`;
}

/** The history of an instance with its input and output; asked for again when `version` changes. */
export function HistoryOf({ id, version }) {
  const instance = useInstance(id);
  const first = useRef(true);
  useEffect(() => {
    if (first.current) first.current = false;
    else instance.reload();
  }, [version]);
  return html`<section aria-labelledby="history">
    <div class="section-head"><h2 id="history">Its orchestration</h2>
      <a href=${link("orchestrations", id)} class="id">${id}</a></div>
    <${Loaded} query=${instance} lines=${6}>
      ${(it) => html`<${History} events=${it.historyEvents ?? []} />
        <details class="io-all"><summary>Input and output</summary><${InputOutput} of=${it} /></details>`}
    <//>
  </section>`;
}

export function InputOutput({ of: it }) {
  return html`<dl class="io">
    <div><dt>Input</dt><dd><${Json} value=${it.input} name="Input" /></dd></div>
    <div><dt>Custom status</dt><dd><${Json} value=${it.customStatus} name="Custom status" /></dd></div>
    <div><dt>Output</dt><dd><${Json} value=${it.output} name="Output" /></dd></div>
  </dl>`;
}

/** Raise an event to an instance; `names` are those that are usual. */
export function RaiseEvent({ id, names = [], onClose, after }) {
  const action = ({ name, payload }) => {
    let json = null;
    if (payload.trim() !== "") {
      try {
        json = JSON.parse(payload);
      } catch (error) {
        throw Object.assign(new Error(`${error.message}. Write texts in quotation marks.`), {
          title: "The payload is no JSON",
        });
      }
    }
    return post(path`/runtime/webhooks/durabletask/instances/${id}/raiseEvent/${name}`, json);
  };
  return html`<${Dialog} title="Raise an event" verb="Raise it" action=${action} onClose=${onClose}
    after=${() => {
      announce("The event was raised.");
      after?.();
    }}>
    <p class="faint id">${id}</p>
    <${Field} name="name" title="Event" wide>${(a) => html`<input ...${a} name="name"
      list="event-names" required autocomplete="off" />`}<//>
    <datalist id="event-names">${names.map((name) => html`<option key=${name} value=${name} />`)}</datalist>
    <${Field} name="payload" title="Payload" hint="JSON; empty is null." wide>
      ${(a) => html`<textarea ...${a} name="payload" rows="5" spellcheck=${false}></textarea>`}<//>
  <//>`;
}
