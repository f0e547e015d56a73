// What can be begun: a fleet, a release, a rollout.
import { Heading, html } from "../ui.js";
import { LaunchFleet } from "./launch_fleet.js";
import { LaunchRelease } from "./launch_release.js";
import { LaunchRollout } from "./launch_rollout.js";

const KINDS = { fleet: "A fleet", release: "A release", rollout: "A rollout" };

export function Launch({ what, search }) {
  const kind = KINDS[what] ? what : "fleet";
  return html`<${Heading}>Launch<//>
    <nav class="tabs" aria-label="What to launch">${Object.entries(KINDS).map(
      ([key, text]) =>
        html`<a key=${key} href=${`#/launch/${key}`} aria-current=${key === kind ? "page" : undefined}>${text}
          </a>`,
    )}</nav>
    ${kind === "fleet" && html`<${LaunchFleet} />`}
    ${kind === "release" && html`<${LaunchRelease} />`}
    ${kind === "rollout" && html`<${LaunchRollout} search=${search} />`}`;
}
