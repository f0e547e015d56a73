// A rollout by form. Its plan is asked for as it is written, and shown as it will run.
import { get, post } from "../api.js";
import { useLive, useQuery } from "../live.js";
import { go, link } from "../router.js";
import { IDLE, label } from "../states.js";
import { ErrorNote, announce, html, useEffect, useRef, useState } from "../ui.js";
import { Input, Select, compact, errorAt, numberOf, words } from "./launch_parts.js";
import { Preview } from "./launch_preview.js";
import { Criteria, Waves } from "./launch_waves.js";

const START = {
  name: "",
  release: "",
  which: "new",
  devices: "",
  models: "",
  firmware_versions: "",
  tags: "",
  states: [],
  failed_in: "",
  percent: "100",
  exclude: "",
  continuous: false,
  in_flight: "500",
  per_minute: "",
  order: "id",
  seed: "1",
  rollout_s: "",
  start_at: "",
  end_at: "",
  at_end: "finish",
  from: "",
  to: "",
  overlap: "refuse",
  ack_timeout_s: "",
  activation_timeout_s: "",
  device_timeout_s: "",
  max_attempts: "",
  sas_lifetime_s: "",
};

/** The plan that the form describes, as `POST /api/rollouts` takes it. */
export function planOf(values, waves, criteria) {
  const targets = { percent: numberOf(values.percent), exclude: words(values.exclude) };
  if (values.which === "ids") targets.devices = words(values.devices);
  if (values.which === "failed") targets.failed_in = values.failed_in;
  if (values.which === "match") {
    targets.models = values.models
      .split(",")
      .map((one) => one.trim())
      .filter(Boolean);
    targets.firmware_versions = values.firmware_versions
      .split(",")
      .map((one) => one.trim())
      .filter(Boolean);
    targets.tags = Object.fromEntries(
      words(values.tags).map((one) => [one.split("=")[0], one.split("=").slice(1).join("=")]),
    );
    targets.states = values.states;
  }
  if (values.continuous) targets.continuous = true;
  const zoned = (at) => (at ? new Date(at).toISOString() : null);
  return compact({
    name: values.name,
    release: values.release,
    targets,
    waves: waves.map((wave) => ({
      percent: wave.by === "percent" ? numberOf(wave.size) : null,
      count: wave.by === "count" ? numberOf(wave.size) : null,
      success_threshold_percent: numberOf(wave.threshold),
      gate: wave.gate === "none" ? null : wave.gate,
      pause_s: wave.gate === "pause" ? numberOf(wave.pause_s) : null,
    })),
    pace: {
      in_flight: numberOf(values.in_flight),
      per_minute: numberOf(values.per_minute),
      order: values.order,
      seed: values.order === "random" ? numberOf(values.seed) : null,
    },
    abort: criteria.map((one) => ({
      on: one.on,
      threshold_percent: numberOf(one.threshold),
      min_sample: numberOf(one.sample),
      action: one.action,
    })),
    deadlines: { rollout_s: numberOf(values.rollout_s) },
    schedule: {
      start_at: zoned(values.start_at),
      end_at: zoned(values.end_at),
      at_end: values.end_at ? values.at_end : null,
      windows: values.from && values.to ? [{ from: values.from, to: values.to }] : [],
    },
    options: {
      ack_timeout_s: numberOf(values.ack_timeout_s),
      activation_timeout_s: numberOf(values.activation_timeout_s),
      device_timeout_s: numberOf(values.device_timeout_s),
      max_attempts: numberOf(values.max_attempts),
      sas_lifetime_s: numberOf(values.sas_lifetime_s),
    },
    overlap: values.overlap,
  });
}

export function LaunchRollout({ search }) {
  const form = useState({ ...START, release: search.get("release") ?? "" });
  const [values, setValues] = form;
  const [waves, setWaves] = useState([
    { by: "percent", size: "5", threshold: "95", gate: "none", pause_s: "" },
    { by: "percent", size: "100", threshold: "", gate: "none", pause_s: "" },
  ]);
  const [criteria, setCriteria] = useState([
    { on: "failed", threshold: "20", sample: "10", action: "pause" },
  ]);
  const [preview, setPreview] = useState({ plan: null, answer: null, error: null });
  const [refused, setRefused] = useState(null);
  const [busy, setBusy] = useState(false);
  const { epoch } = useLive();
  const releases = useQuery("/api/releases", { fetcher: get });
  const earlier = useQuery("/api/rollouts", { fetcher: get });
  const plan = planOf(values, waves, criteria);
  const text = JSON.stringify(plan);
  const asked = useRef(0);
  useEffect(() => {
    setRefused(null);
    const number_ = (asked.current += 1);
    const timer = setTimeout(async () => {
      const found = { plan: text, answer: null, error: null };
      try {
        found.answer = await post("/api/rollouts/plan", { plan: JSON.parse(text) });
      } catch (failure) {
        found.error = failure;
      }
      if (asked.current === number_)
        setPreview((before) => ({ ...found, answer: found.answer ?? before.answer }));
    }, 300);
    return () => clearTimeout(timer);
  }, [text, epoch]);
  const error = refused ?? preview.error;
  const at = (key, ...more) => errorAt(error, key, ...more);
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    try {
      const rollout = await post("/api/rollouts", { plan, actor: "page" });
      announce(`${rollout.rollout_id} has started.`);
      go(link("rollouts", rollout.rollout_id));
    } catch (failure) {
      setRefused(failure);
    } finally {
      setBusy(false);
    }
  };
  return html`<form class="launch" onSubmit=${submit} novalidate>
    <div class="launch-main">
      <fieldset><legend>What, and to which devices</legend><div class="fields">
        <${Input} form=${form} name="name" title="Name" hint="May be empty." maxlength="200"
          error=${at("name")} />
        <${Select} form=${form} name="release" title="Release" error=${at("release")}
          options=${[["", "the service's own"], ...(releases.data?.releases ?? []).filter((one) => !one.default).map(({ name, version }) => [name, `${name} (${version})`])]} />
        <${Select} form=${form} name="which" title="Devices" options=${[
          ["new", "all new ones"],
          ["match", "those that match"],
          ["ids", "by id"],
          ["failed", "those that failed in a rollout"],
        ]} />
        <${Input} form=${form} name="percent" title="Of these, percent" hint="Always the same ones."
          type="number" min="0" max="100" step="any" error=${at("targets.percent")} />
        ${values.which === "ids" && html`<${Input} form=${form} name="devices" title="Device ids" wide
          error=${at("targets.devices")} />`}
        ${values.which === "failed" && html`<${Select} form=${form} name="failed_in" title="Rollout" wide
          error=${at("targets.failed_in")}
          options=${[["", "choose one"], ...(earlier.data?.rollouts ?? []).map((one) => [one.rollout_id, one.name ? `${one.name} (${one.rollout_id})` : one.rollout_id])]} />`}
        ${
          values.which === "match" &&
          html`
          <${Input} form=${form} name="models" title="Models" hint="By commas; empty: all."
            error=${at("targets.models")} />
          <${Input} form=${form} name="firmware_versions" title="Firmware versions"
            error=${at("targets.firmware_versions")} />
          <${Input} form=${form} name="tags" title="Tags" hint="name=value" error=${at("targets.tags")} />
          <fieldset class="field wide checks"><legend>States</legend>${IDLE.map(
            (
              state,
            ) => html`<label key=${state}><input type="checkbox" checked=${values.states.includes(state)}
            onChange=${(event) => setValues({ ...values, states: event.target.checked ? [...values.states, state] : values.states.filter((one) => one !== state) })} /> ${label(state)}
              </label>`,
          )}
            ${at("targets.states") ? html`<p class="field-error">${at("targets.states")}
              </p>` : html`<p class="hint">None: new ones.</p>`}</fieldset>`
        }
        ${
          (values.which === "new" || values.which === "match") &&
          html`<label class="check wide"><input type="checkbox" checked=${values.continuous}
          onChange=${(event) => setValues({ ...values, continuous: event.target.checked })} /> Devices that register later join</label>`
        }
      </div></fieldset>
      <${Waves} waves=${waves} setWaves=${setWaves} at=${at} />
      <fieldset><legend>Pace</legend><div class="fields">
        <${Input} form=${form} name="in_flight" title="Devices at once" type="number" min="1" max="1000"
          error=${at("pace.in_flight")} />
        <${Input} form=${form} name="per_minute" title="Starts a minute" hint="Empty: no limit." type="number"
          min="0.001" step="any" error=${at("pace.per_minute")} />
        <${Select} form=${form} name="order" title="Order" error=${at("pace.order", "pace.seed")} options=${[
          ["id", "by id"],
          ["random", "random"],
        ]} />
      </div></fieldset>
      <${Criteria} criteria=${criteria} setCriteria=${setCriteria} at=${at} />
      <details class="more-fields"><summary>Schedule and deadlines</summary><div class="fields">
        <${Input} form=${form} name="start_at" title="Start at" type="datetime-local"
          error=${at("schedule.start_at")} />
        <${Input} form=${form} name="end_at" title="End at" type="datetime-local"
          error=${at("schedule.end_at")} />
        <${Select} form=${form} name="at_end" title="Then" error=${at("schedule.at_end")} options=${[
          ["finish", "those in flight finish"],
          ["cancel", "cancel"],
          ["force_cancel", "cancel by force"],
        ]} />
        <${Input} form=${form} name="from" title="Daily from (UTC)" type="time"
          error=${at("schedule.windows[0].from")} />
        <${Input} form=${form} name="to" title="Daily to (UTC)" type="time"
          error=${at("schedule.windows[0].to", "schedule.windows")} />
        <${Input} form=${form} name="rollout_s" title="Whole rollout, seconds" hint="Then it is cancelled."
          type="number" step="any" error=${at("deadlines.rollout_s", "deadlines")} />
      </div></details>
      <details class="more-fields"><summary>For each device</summary><div class="fields">
        <${Input} form=${form} name="max_attempts" title="Attempts" hint="3 by default" type="number" min="1"
          error=${at("options.max_attempts")} />
        <${Input} form=${form} name="ack_timeout_s" title="Download within, seconds" hint="60 by default"
          type="number" step="any" error=${at("options.ack_timeout_s")} />
        <${Input} form=${form} name="activation_timeout_s" title="Activation within, seconds"
          hint="30 by default" type="number" step="any" error=${at("options.activation_timeout_s")} />
        <${Input} form=${form} name="device_timeout_s" title="All of it within, seconds"
          hint="no bound by default" type="number" step="any" error=${at("options.device_timeout_s")} />
        <${Input} form=${form} name="sas_lifetime_s" title="URL good for at most, seconds" hint="as long as it is of use"
          type="number" step="any" error=${at("options.sas_lifetime_s")} />
        <${Select} form=${form} name="overlap" title="Devices of another run" error=${at("overlap")} options=${[
          ["refuse", "refuse the rollout"],
          ["skip", "go without them"],
          ["wait", "wait for them"],
          ["join", "share their outcome"],
        ]} />
        <${Input} form=${form} name="exclude" title="Without these ids" wide error=${at("targets.exclude")} />
      </div></details>
      ${refused && html`<${ErrorNote} error=${refused} />`}
    </div>
    <aside class="launch-side" aria-labelledby="plan-title">
      <${Preview} preview=${preview} pending=${preview.plan !== text} busy=${busy} asked=${plan} />
    </aside>
  </form>`;
}
