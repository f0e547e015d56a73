// All orchestration instances, by status and by how their ids begin.
import { getWhole, query } from "../api.js";
import { useQuery } from "../live.js";
import { go, link, replaceQuery } from "../router.js";
import { Empty, Heading, Loaded, Status, Time, html, useEffect, useState } from "../ui.js";

const STATUSES = ["Running", "Completed", "Failed", "Terminated", "Suspended", "Pending"];
const TOKEN = "x-ms-continuation-token";

export function Orchestrations({ search }) {
  const [filter, setFilter] = useState({
    prefix: search.get("prefix") ?? "",
    status: search.get("status") ?? "",
  });
  const [asked, setAsked] = useState(filter);
  const [tokens, setTokens] = useState([null]);
  useEffect(() => {
    const timer = setTimeout(() => setAsked(filter), 250);
    replaceQuery(filter);
    return () => clearTimeout(timer);
  }, [filter]);
  const token = tokens.at(-1);
  const address = `/runtime/webhooks/durabletask/instances${query({ runtimeStatus: asked.status, instanceIdPrefix: asked.prefix, showInput: "false", top: 50 })}`;
  const list = useQuery(`${address}#${token ?? ""}`, {
    fetcher: async (path, options) => {
      const [plain] = path.split("#");
      const answer = await getWhole(plain, { ...options, headers: token ? { [TOKEN]: token } : {} });
      return { instances: answer.data, next: answer.headers.get(TOKEN) };
    },
  });
  const change = (event) => {
    setFilter({ ...filter, [event.target.name]: event.target.value });
    setTokens([null]);
  };
  const open = (event) => {
    event.preventDefault();
    const id = new FormData(event.target).get("id").trim();
    if (id) go(link("orchestrations", id));
  };
  return html`<${Heading}>Orchestrations<//>
    <div class="filters">
      <label>Id begins with <input name="prefix" value=${filter.prefix} onInput=${change} autocomplete="off"
        spellcheck=${false} /></label>
      <label>Status <select name="status" value=${filter.status} onChange=${change}>
        <option value="">any</option>${STATUSES.map((one) => html`<option key=${one} value=${one}>${one}
        </option>`)}</select></label>
      <form class="inline-form" onSubmit=${open}><label>Open by id <input name="id" autocomplete="off"
        spellcheck=${false} /></label><button type="submit">Open</button></form>
    </div>
    <${Loaded} query=${list} lines=${10}>
      ${({ instances, next }) =>
        instances.length === 0
          ? html`<${Empty} title="There is no such orchestration">They come with runs and rollouts: <a
            href="#/launch/rollout">start one</a>.<//>`
          : html`<div class="scroll" tabindex="0" role="region" aria-label="Orchestrations"><table class="rows">
              <caption class="visually-hidden">Orchestration instances</caption>
              <thead><tr><th scope="col">Instance</th><th scope="col">Orchestrator</th>
                <th scope="col">Status</th><th scope="col">Created</th><th scope="col">Last changed</th></tr>
                </thead>
              <tbody>${instances.map(
                (one) => html`<tr key=${one.instanceId}>
                  <th scope="row"><a href=${link("orchestrations", one.instanceId)} class="id">
                    ${one.instanceId}</a></th>
                  <td>${one.name}</td><td><${Status} status=${one.runtimeStatus} /></td>
                  <td><${Time} at=${one.createdTime} /></td><td><${Time} at=${one.lastUpdatedTime} /></td>
                </tr>`,
              )}</tbody></table></div>
            <div class="pager">
              <button type="button" disabled=${tokens.length === 1}
                onClick=${() => setTokens(tokens.slice(0, -1))}>Back</button>
              <button type="button" disabled=${!next}
                onClick=${() => setTokens([...tokens, next])}>Next</button>
            </div>`}
    <//>`;
}
