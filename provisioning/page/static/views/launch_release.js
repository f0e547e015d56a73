// A release by form: a firmware from a file, or a generated one.
import { bytes } from "../format.js";
import { useQuery } from "../live.js";
import { Dialog, Field } from "../dialog.js";
import { path, postForm, remove } from "../api.js";
import { Empty, ErrorNote, Loaded, Time, announce, html, useState } from "../ui.js";
import { Command, Input, errorAt, quoted, words } from "./launch_parts.js";

const MIB = 1024 * 1024;

export function LaunchRelease() {
  const releases = useQuery("/api/releases");
  const form = useState({ name: "", version: "", models: "", size: "1", configuration: "", notes: "" });
  const [values, setValues] = form;
  const [source, setSource] = useState("generated");
  const [file, setFile] = useState(null);
  const [error, setError] = useState(null);
  const [done, setDone] = useState(null);
  const [busy, setBusy] = useState(false);
  const [removing, setRemoving] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setError(null);
    setDone(null);
    try {
      const body = new FormData();
      body.append("name", values.name);
      body.append("version", values.version);
      for (const model of words(values.models)) body.append("model", model);
      if (values.configuration.trim()) body.append("configuration", values.configuration);
      if (values.notes.trim()) body.append("notes", values.notes);
      if (source === "generated")
        body.append("generated_size_bytes", String(Math.round(Number(values.size) * MIB)));
      else if (file) body.append("firmware", file);
      const release = await postForm("/api/releases", body);
      setDone(release);
      announce(`The release ${release.name} is there.`);
      releases.reload();
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  const command = [
    "muster release add",
    quoted(values.name || "NAME"),
    source === "generated" ? `--generate ${values.size}MiB` : `--firmware ${quoted(file?.name ?? "FILE")}`,
    `--version ${quoted(values.version || "VERSION")}`,
    ...(values.models ? [`--model ${quoted(words(values.models).join(","))}`] : []),
  ].join(" ");
  return html`<form class="launch" onSubmit=${submit} novalidate>
      <div class="launch-main">
        <fieldset><legend>Release</legend><div class="fields">
          <${Input} form=${form} name="name" title="Name" hint="Letters, digits, '.', '_' and '-'."
            error=${errorAt(error, "name")} />
          <${Input} form=${form} name="version" title="Version" hint="What devices say that they run then."
            error=${errorAt(error, "version")} />
          <${Input} form=${form} name="models" title="Models" hint="That it fits; empty: all."
            error=${errorAt(error, "model", "models")} />
        </div></fieldset>
        <fieldset><legend>Firmware</legend>
          <div class="choices">
            <label><input type="radio" name="source" checked=${source === "generated"}
              onChange=${() => setSource("generated")} /> Generated from the name</label>
            <label><input type="radio" name="source" checked=${source === "file"}
              onChange=${() => setSource("file")} /> From a file</label>
          </div>
          <div class="fields">${
            source === "generated"
              ? html`<${Input} form=${form} name="size" title="Size in MiB" type="number" min="0.001" max="64"
                step="any" error=${errorAt(error, "generated_size_bytes")} />`
              : html`<${Field} name="firmware" title="File" hint="Up to 64 MiB."
                error=${errorAt(error, "firmware")}>${(a) => html`<input ...${a} type="file"
                onChange=${(event) => setFile(event.target.files[0] ?? null)} />`}<//>`
          }</div>
        </fieldset>
        <details class="more-fields" open=${errorAt(error, "configuration", "notes") !== null}>
          <summary>Configuration and notes</summary><div class="fields">
          <${Field} name="configuration" title="Configuration" wide
            hint="A JSON object; texts may hold {device_id}, {model}, {firmware_version} and {tags.NAME}."
            error=${errorAt(error, "configuration")}>
            ${(a) => html`<textarea ...${a} rows="5" spellcheck=${false} value=${values.configuration}
              onInput=${(event) => setValues({ ...values, configuration: event.target.value })}></textarea>`}
              <//>
          <${Input} form=${form} name="notes" title="Notes" wide error=${errorAt(error, "notes")} />
        </div></details>
        <${ErrorNote} error=${error} />
        ${done && html`<div class="note" data-kind="good" role="status">
          ${done.name} is there: <a
          href=${`#/launch/rollout?release=${encodeURIComponent(done.name)}`}>roll it out</a>.</div>`}
        <div class="form-end"><button type="submit" class="primary" aria-disabled=${busy}>
          ${busy ? "Adding…" : "Add the release"}</button></div>
      </div>
      <aside class="launch-side" aria-label="In short"><${Command} text=${command} /></aside>
    </form>
    <section aria-labelledby="releases"><h2 id="releases">Releases</h2>
      <${Loaded} query=${releases} lines=${3}>${({ releases: found }) => {
        const all = found.filter((one) => !one.default);
        return all.length === 0
          ? html`<${Empty} title="There is none yet"
            command="muster release add trial-1 --generate 1MiB --version 1.0.0">Without one, rollouts bring the service's own.<//>`
          : html`<div class="scroll" tabindex="0" role="region" aria-label="Releases"><table class="rows">
            <caption class="visually-hidden">Releases, the latest first</caption>
              <thead><tr><th scope="col">Name</th><th scope="col">Version</th><th scope="col">Models</th>
                <th scope="col" class="num">Size</th><th scope="col">Added</th><th scope="col">
                <span class="visually-hidden">Actions</span></th></tr></thead>
              <tbody>${all.map(
                (
                  one,
                ) => html`<tr key=${one.name}><th scope="row">${one.name}</th><td>${one.version}</td><td>
                  ${one.models?.length ? one.models.join(", ") : "all"}</td>
                <td class="num">${bytes(one.firmware.size_bytes)}</td><td><${Time} at=${one.created_at} /></td>
                <td class="end"><a class="button quiet"
                  href=${`#/launch/rollout?release=${encodeURIComponent(one.name)}`}>Roll out</a>
                  <button type="button" class="quiet" aria-label=${`Remove ${one.name}`}
                    onClick=${() => setRemoving(one.name)}>Remove</button></td></tr>`,
              )}</tbody></table></div>`;
      }}<//>
    </section>
    ${
      removing &&
      html`<${Dialog} title=${`Remove ${removing}?`} verb="Remove" danger
        action=${() => remove(path`/api/releases/${removing}`)} after=${releases.reload}
        onClose=${() => setRemoving(null)}>
      <p>No rollout can bring it any more. One that is needed by an unfinished rollout is not removed.</p><//>`
    }`;
}
