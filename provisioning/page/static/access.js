// What whoever looks at the page may do: everything, or look. Known before anything is drawn, and the same until it is
// loaded again.
import { get, post } from "./api.js";
import { useLive } from "./live.js";
import { html, useState } from "./ui.js";

const PATIENCE_MS = 5000;

export const access = { readOnly: false, session: false };

export async function learnAccess() {
  try {
    const found = await get("/api/session", { signal: AbortSignal.timeout(PATIENCE_MS) });
    access.readOnly = found.access === "read";
    access.session = found.by === "session";
  } catch {
    // Whatever may not be done is refused all the same.
  }
}

/** At the top: that it is for looking only, and the way out of a session. */
export function AccessNote() {
  const { status } = useLive();
  const [failed, setFailed] = useState(false);
  const leave = async () => {
    try {
      await post("/logout");
      location.reload();
    } catch {
      setFailed(true);
    }
  };
  return html`${access.readOnly && html`<span class="read-only" title="This token changes nothing">Read only</span>`}
    ${
      access.session &&
      status !== "locked" &&
      html`<button type="button" class="quiet" onClick=${leave}>${failed ? "Log out: try again" : "Log out"}</button>`
    }`;
}
