// All devices: a cell for each, and a list by state, model, tag, presence and the beginning of the id.
import { access } from "../access.js";
import { query } from "../api.js";
import { CellMap } from "../cells.js";
import { useCells } from "../cells_live.js";
import { percent } from "../format.js";
import { useQuery } from "../live.js";
import { go, link, replaceQuery } from "../router.js";
import { STATES, label } from "../states.js";
import { Empty, Heading, Loaded, Skeleton, State, Time, html, useEffect, useState } from "../ui.js";
import { Pager } from "./rollout_parts.js";

const FILTERS = ["q", "state", "model", "tag", "online", "run_id", "sort"];
const SORTS = { device_id: "id", "-updated_at": "latest change", state: "state", attempt: "attempts" };

export function Devices({ search }) {
  const [filter, setFilter] = useState(
    Object.fromEntries(FILTERS.map((name) => [name, search.get(name) ?? ""])),
  );
  const [pages, setPages] = useState([null]);
  const [asked, setAsked] = useState(filter);
  useEffect(() => {
    const timer = setTimeout(() => setAsked(filter), 250);
    replaceQuery(filter);
    return () => clearTimeout(timer);
  }, [filter]);
  const change = (event) => {
    setFilter({ ...filter, [event.target.name]: event.target.value });
    setPages([null]);
  };
  const clear = () => {
    setFilter(Object.fromEntries(FILTERS.map((name) => [name, ""])));
    setPages([null]);
  };
  const list = useQuery(`/api/devices${query({ ...asked, after: pages.at(-1), limit: 50 })}`, {
    on: { devices: () => true },
    minimumMs: 2000,
  });
  const any = FILTERS.some((name) => name !== "sort" && filter[name] !== "");
  return html`<${Heading} aside=${
    !access.readOnly && html`<a class="button" href="#/launch/fleet">Launch a fleet</a>`
  }>Devices<//>
    <section aria-labelledby="all-cells"><h2 id="all-cells" class="visually-hidden">A cell per device</h2>
      <${All} /></section>
    <form class="filters" role="search" aria-label="Devices" onSubmit=${(event) => event.preventDefault()}>
      <label>Id begins with <input name="q" value=${filter.q} onInput=${change} autocomplete="off"
        spellcheck=${false} /></label>
      <label>State <select name="state" value=${filter.state} onChange=${change}><option value="">any</option>
        ${Object.keys(STATES)
          .filter((s) => s !== "pending")
          .map((s) => html`<option key=${s} value=${s}>${label(s)}</option>`)}</select></label>
      <label>Model <input name="model" value=${filter.model} onInput=${change} autocomplete="off" /></label>
      <label>Tag <input name="tag" value=${filter.tag} onInput=${change} placeholder="name=value"
        autocomplete="off" /></label>
      <label>Presence <select name="online" value=${filter.online} onChange=${change}>
        <option value="">any</option><option value="true">online</option>
        <option value="false">offline</option></select></label>
      <label>Order <select name="sort" value=${filter.sort || "device_id"} onChange=${change}>
        ${Object.entries(SORTS).map(([key, text]) => html`<option key=${key} value=${key}>${text}</option>`)}
        </select></label>
      <button type="button" class="quiet" disabled=${!any}
        onClick=${clear}>Clear</button>
    </form>
    ${filter.run_id && html`<p class="faint">Of ${filter.run_id}.</p>`}
    <${Loaded} query=${list} lines=${10}>
      ${(page) =>
        page.devices.length === 0
          ? html`<${Empty} title=${any ? "No device is like that" : "There are no devices yet"}
            command=${any ? undefined : "muster fleet launch --count 200"}>
              ${any ? "Clear the filters to see all." : html`<a
                href="#/launch/fleet">Launch a fleet</a>, or let a device of yours register.`}<//>`
          : html`<div class="scroll" tabindex="0" role="region" aria-label="Devices"><table class="rows">
              <caption class="visually-hidden">Devices</caption>
              <thead><tr><th scope="col">Device</th><th scope="col">State</th><th scope="col">Presence</th>
                <th scope="col">Model</th>
                <th scope="col">Firmware</th><th scope="col" class="num">Attempt</th>
                  <th scope="col">Changed</th><th scope="col">Error</th></tr></thead>
              <tbody>${page.devices.map(
                (one) => html`<tr key=${one.device_id}>
                  <th scope="row"><a href=${link("devices", one.device_id)}>${one.device_id}</a></th>
                  <td><${State} state=${one.state} />
                    ${one.state === "downloading" && one.progress != null && html` <span class="faint">
                    ${percent(one.progress)}</span>`}</td>
                  <td><span class="presence" data-online=${one.online ? "yes" : "no"}>
                    <span class="dot" aria-hidden="true"></span>${one.online ? "online" : "offline"}</span></td>
                  <td>${one.model}</td><td>${one.firmware_version}</td><td class="num">${one.attempt}</td>
                  <td><${Time} at=${one.updated_at} /></td><td class="error-cell">${one.error}</td>
                </tr>`,
              )}</tbody></table></div>
            <${Pager} pages=${pages} setPages=${setPages} next=${page.next} total=${page.total} />`}
    <//>`;
}

function All() {
  const { cells, version, error } = useCells("/api/cells");
  if (!cells)
    return error
      ? html`<p class="faint">The cells can't be had: ${error.message}</p>`
      : html`<${Skeleton} tall />`;
  if (cells.ids.length === 0) return null;
  return html`<${CellMap} cells=${cells} version=${version} name="All devices"
    open=${(id) => go(link("devices", id))} />`;
}
