// A fleet by form: how many devices, and how they behave.
import { get, post } from "../api.js";
import { number, percent, plural } from "../format.js";
import { useQuery } from "../live.js";
import { go } from "../router.js";
import { ErrorNote, Loaded, Sign, announce, html, useState } from "../ui.js";
import { Command, Input, compact, errorAt, numberOf, quoted } from "./launch_parts.js";
import { label } from "../states.js";

const START = {
  count: "200",
  seed: "1",
  prefix: "dev",
  first: "1",
  model: "demo-1",
  firmware_version: "0.9.0",
  tags: "",
  speed: "1",
  devices_per_s: "500",
  processes: "",
};

export function LaunchFleet() {
  const behaviours = useQuery("/api/behaviours", { fetcher: get });
  const form = useState(START);
  const [values] = form;
  const [chosen, setChosen] = useState([
    ["healthy", "0.9"],
    ["slow", "0.05"],
    ["offline", "0.05"],
  ]);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const weights = Object.fromEntries(chosen.map(([name, weight]) => [name, Number(weight)]));
  const tags = Object.fromEntries(
    values.tags
      .split(/[\s,]+/)
      .filter(Boolean)
      .map((one) => {
        const [name, ...rest] = one.split("=");
        return [name, rest.join("=")];
      }),
  );
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setError(null);
    try {
      const group = compact({
        name: "devices",
        count: numberOf(values.count),
        model: values.model,
        firmware_version: values.firmware_version,
        prefix: values.prefix,
        first: numberOf(values.first),
        tags,
      });
      const spec = {
        ...compact({
          seed: numberOf(values.seed),
          speed: numberOf(values.speed),
          ramp: { devices_per_s: numberOf(values.devices_per_s) },
        }),
        groups: [{ ...group, behaviours: weights }],
      };
      const fleet = await post("/api/fleets", {
        spec,
        ...compact({ processes: numberOf(values.processes) }),
      });
      announce(`${fleet.fleet_id} is launched with ${plural(fleet.devices, "device")}.`);
      go("#/devices");
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  const at = (key) => errorAt(error, `groups[0].${key}`, key);
  const flags = [
    ["count", "--count"],
    ["seed", "--seed"],
    ["prefix", "--prefix"],
    ["model", "--model"],
    ["firmware_version", "--firmware-version"],
    ["processes", "--processes"],
  ]
    .filter(([name]) => values[name] !== "" && (name === "count" || values[name] !== START[name]))
    .map(([name, flag]) => `${flag} ${quoted(values[name])}`);
  const command = [
    "muster fleet launch",
    ...flags,
    `--behaviours ${quoted(chosen.map(([name, weight]) => `${name}=${weight}`).join(","))}`,
  ].join(" ");
  return html`<form class="launch" onSubmit=${submit} novalidate>
    <div class="launch-main">
      <fieldset><legend>Devices</legend><div class="fields">
        <${Input} form=${form} name="count" title="How many" type="number" min="1" max="100000"
          error=${at("count")} />
        <${Input} form=${form} name="prefix" title="Ids begin with" error=${at("prefix")} />
        <${Input} form=${form} name="first" title="First number" type="number" min="0" error=${at("first")} />
        <${Input} form=${form} name="model" title="Model" error=${at("model")} />
        <${Input} form=${form} name="firmware_version" title="Firmware version"
          error=${at("firmware_version")} />
        <${Input} form=${form} name="tags" title="Tags" hint="name=value, several by spaces"
          error=${at("tags")} />
      </div></fieldset>
      <fieldset><legend>Behaviours</legend>
        <${Loaded} query=${behaviours} lines=${3}>
          ${({ behaviours: known }) => html`<${Behaviours} known=${known} chosen=${chosen}
            setChosen=${setChosen} count=${Number(values.count) || 0} error=${at("behaviours")} />`}
        <//>
      </fieldset>
      <details class="more-fields"><summary>Seed, pace and processes</summary><div class="fields">
        <${Input} form=${form} name="seed" title="Seed" hint="The same seed gives the same fleet."
          type="number" error=${at("seed")} />
        <${Input} form=${form} name="speed" title="Speed" hint="Of what devices wait for by themselves."
          type="number" step="any" error=${at("speed")} />
        <${Input} form=${form} name="devices_per_s" title="Connections a second" type="number"
          error=${at("ramp")} />
        <${Input} form=${form} name="processes" title="Processes" hint="Empty: as many as the fleet needs."
          type="number" min="1" error=${at("processes")} />
      </div></details>
      ${error && html`<${ErrorNote} error=${error} />`}
      <div class="form-end"><button type="submit" class="primary" aria-disabled=${busy}>
        ${busy ? "Launching…" : `Launch ${plural(Number(values.count) || 0, "device")}`}</button></div>
    </div>
    <aside class="launch-side" aria-label="In short"><${Command} text=${command} /></aside>
  </form>`;
}

function Behaviours({ known, chosen, setChosen, count, error }) {
  const total = chosen.reduce((sum, [, weight]) => sum + (Number(weight) || 0), 0);
  const about = new Map(known.map((one) => [one.name, one]));
  const left = known.filter(({ name }) => !chosen.some(([taken]) => taken === name));
  const change = (i, weight) => setChosen(chosen.map(([name, old], j) => [name, i === j ? weight : old]));
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Behaviours">
    <table class="rows compact-rows">
      <caption class="visually-hidden">Behaviours with their weights</caption>
      <thead><tr><th scope="col">Behaviour</th><th scope="col">Weight</th>
        <th scope="col" class="num">Devices</th><th scope="col">Should end</th><th scope="col">
        <span class="visually-hidden">Remove</span></th></tr></thead>
      <tbody>${chosen.map(([name, weight], i) => {
        const share = total > 0 ? (Number(weight) || 0) / total : 0;
        return html`<tr key=${name}>
          <th scope="row">${name}<br /><span class="faint">${about.get(name)?.summary}</span></th>
          <td><input class="short" type="number" min="0" step="any" value=${weight}
            aria-label=${`Weight of ${name}`} onInput=${(event) => change(i, event.target.value)} /></td>
          <td class="num">${number(Math.round(share * count))}<br /><span class="faint">
            ${percent(100 * share)}</span></td>
          <td>${about.get(name) && html`<span class="state"><${Sign} state=${about.get(name).expected} />
            ${label(about.get(name).expected)}</span>`}</td>
          <td class="end"><button type="button" class="quiet" disabled=${chosen.length === 1}
            aria-label=${`Remove ${name}`}
            onClick=${() => setChosen(chosen.filter((_, j) => j !== i))}>Remove</button></td>
        </tr>`;
      })}</tbody>
    </table></div>
    ${error && html`<p class="field-error" role="alert">${error}</p>`}
    <div class="row-actions">
      <label class="inline">Add <select aria-label="Add a behaviour" value="" onChange=${(event) => {
        if (event.target.value) setChosen([...chosen, [event.target.value, "0.1"]]);
        event.target.value = "";
      }}><option value="">a behaviour…</option>${left.map(({ name, summary }) => html`<option key=${name}
        value=${name}>${name}: ${summary}</option>`)}</select></label>
      <button type="button" class="quiet"
        onClick=${() => setChosen(known.map(({ name }) => [name, "1"]))}>All, in equal parts</button>
      <button type="button" class="quiet" onClick=${() => setChosen([["healthy", "1"]])}>Healthy alone</button>
    </div>`;
}
