// One orchestration instance: its tree, its history, and what may be done with it.
import { access } from "../access.js";
import { get, path, post, remove } from "../api.js";
import { Dialog, Field } from "../dialog.js";
import { between, duration } from "../format.js";
import { useQuery } from "../live.js";
import { go, link } from "../router.js";
import { Figure, Heading, Loaded, Status, Time, announce, html, useEffect, useState } from "../ui.js";
import { History, InputOutput, RaiseEvent, addressOf, useInstance } from "./instance_parts.js";

const OPEN = ["Running", "Pending", "Suspended", "ContinuedAsNew"];
const ENDED = ["Completed", "Failed", "Terminated", "Canceled"];
const VERBS = {
  raise: { name: "Raise event", in: OPEN },
  suspend: {
    name: "Suspend",
    in: ["Running", "Pending"],
    says: "It takes no further turn until it is resumed.",
  },
  resume: { name: "Resume", in: ["Suspended"], says: "It goes on where it was." },
  rewind: {
    name: "Rewind",
    in: ["Failed"],
    says: "It goes on from its last good state; what had failed is done again.",
  },
  restart: { name: "Restart", in: ENDED, says: "It starts again with the same input, under a new id." },
  terminate: {
    name: "Terminate",
    in: OPEN,
    danger: true,
    says: "It ends at once, and no code of it runs any more.",
  },
  purge: {
    name: "Purge",
    in: ENDED,
    danger: true,
    says: "Its state and history are removed for good. Its children stay.",
  },
};

export function Instance({ id }) {
  const instance = useInstance(id);
  const [verb, setVerb] = useState(null);
  // What was asked for is done a moment later.
  const again = () => [0, 300, 1500].forEach((ms) => setTimeout(instance.reload, ms));
  const it = instance.data;
  useEffect(() => {
    if (it) document.title = `${it.runtimeStatus} · ${id} · Muster`;
  }, [it?.runtimeStatus]);
  const may = it && !access.readOnly ? Object.keys(VERBS).filter((name) => VERBS[name].in.includes(it.runtimeStatus)) : [];
  const verbs = html`<div class="verbs" role="group" aria-label="What may be done">${may.map(
    (name) =>
      html`<button type="button" key=${name} class=${VERBS[name].danger ? "danger-quiet" : ""}
        onClick=${() => setVerb(name)}>${VERBS[name].name}</button>`,
  )}</div>`;
  return html`<${Heading} kicker=${html`<a href="#/orchestrations">Orchestration</a>
    ${it && ` · ${it.name}`}`} aside=${verbs}><span class="id">${id}</span><//>
    <${Loaded} query=${instance} lines=${8}>
      ${() => html`
        <dl class="figures">
          <${Figure} name="Status" value=${html`<${Status} status=${it.runtimeStatus} />`} />
          <${Figure} name="Created" value=${html`<${Time} at=${it.createdTime} />`} />
          <${Figure} name="Last changed" value=${html`<${Time} at=${it.lastUpdatedTime} />`} />
          <${Figure} name="Spans"
            value=${duration(between(it.createdTime, ENDED.includes(it.runtimeStatus) ? it.lastUpdatedTime : undefined))} />
        </dl>
        <div class="columns">
          <div>
            <section aria-labelledby="history"><h2 id="history">History</h2>
              <${History} events=${it.historyEvents ?? []} /></section>
          </div>
          <div>
            <section aria-labelledby="tree"><h2 id="tree">Parent and children</h2>
              <${Tree} id=${id} name=${it.name} status=${it.runtimeStatus} /></section>
            <section aria-labelledby="io"><h2 id="io">Input, status, output</h2><${InputOutput} of=${it} />
              </section>
          </div>
        </div>`}
    <//>
    ${verb === "raise" && html`<${RaiseEvent} id=${id} onClose=${() => setVerb(null)}
      after=${again} />`}
    ${verb && verb !== "raise" && html`<${Act} key=${verb} id=${id} verb=${verb}
      onClose=${() => setVerb(null)} after=${again} />`}`;
}

function Act({ id, verb, onClose, after }) {
  const { name, says, danger } = VERBS[verb];
  const action = async ({ reason }) => {
    if (verb === "purge") return remove(addressOf(id));
    return post(`${addressOf(id, `/${verb}`)}${reason ? `?reason=${encodeURIComponent(reason)}` : ""}`);
  };
  const done = (answer) => {
    announce(`${name}: done`);
    if (verb === "purge") go("#/orchestrations");
    else if (verb === "restart" && answer?.id) go(link("orchestrations", answer.id));
    else after();
  };
  return html`<${Dialog} title=${`${name}?`} verb=${name} danger=${danger} action=${action} after=${done}
    onClose=${onClose}>
    <p>${says}</p><p class="faint id">${id}</p>
    ${verb !== "purge" && verb !== "restart" && html`<${Field} name="reason" title="Reason"
      hint="For the record; may be empty." wide>${(a) => html`<input ...${a} name="reason" maxlength="500"
      autocomplete="off" />`}<//>`}
  <//>`;
}

/** The parent, the instance, and its children, which open to show theirs. */
function Tree({ id, name, status }) {
  const own = useQuery(path`/api/instances/${id}/children?top=50`, { fetcher: get });
  return html`<ul class="tree">
    ${own.data?.parent && html`<li class="up"><span aria-hidden="true">↑</span> parent <a
      href=${link("orchestrations", own.data.parent)} class="id">${own.data.parent}</a></li>`}
    <li><b>${name}</b> <${Status} status=${status} />
      <${Loaded} query=${own} lines=${2}>${(page) => html`<${Children} page=${page} id=${id} />`}<//></li>
  </ul>`;
}

function Children({ page, id }) {
  const [more, setMore] = useState([]);
  const [next, setNext] = useState(page.next);
  const [error, setError] = useState(null);
  const all = [...page.children, ...more];
  const load = async () => {
    try {
      const following = await get(
        `${path`/api/instances/${id}/children`}?top=50&after=${encodeURIComponent(next)}`,
      );
      setMore([...more, ...following.children]);
      setNext(following.next);
    } catch (failure) {
      setError(failure);
    }
  };
  if (all.length === 0) return html`<p class="faint">No children.</p>`;
  return html`<ul>${all.map((child) => html`<${Branch} key=${child.instanceId} child=${child} />`)}
    ${next && html`<li><button type="button" class="quiet" onClick=${load}>More children</button></li>`}
    ${error && html`<li class="bad-text">${error.message}</li>`}</ul>`;
}

function Branch({ child }) {
  const [open, setOpen] = useState(false);
  const inner = useQuery(open ? path`/api/instances/${child.instanceId}/children?top=50` : null, {
    fetcher: get,
  });
  return html`<li><details onToggle=${(event) => setOpen(event.target.open)}>
    <summary><a href=${link("orchestrations", child.instanceId)} class="id">${child.instanceId}
      </a> <${Status} status=${child.runtimeStatus} /></summary>
    ${open && html`<${Loaded} query=${inner} lines=${1}>${(page) => html`<${Children} page=${page}
      id=${child.instanceId} />`}<//>`}
  </details></li>`;
}
