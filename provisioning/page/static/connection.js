// How it stands with the service: always in sight, in the way only when something is wrong.
import { useLive } from "./live.js";
import { announce, html, useEffect, useRef } from "./ui.js";

const WORDS = {
  connecting: "Connecting",
  live: "Live",
  polling: "Every 2 s",
  lost: "No connection",
  locked: "Logged out",
};

export function Connection() {
  const { status } = useLive();
  return html`<span class="connection" data-status=${status}>
    <span class="dot" aria-hidden="true"></span>${WORDS[status]}
  </span>`;
}

export function ConnectionNote() {
  const { status } = useLive();
  const before = useRef(status);
  useEffect(() => {
    if (status === "lost") announce("The connection to the service is lost. What you see may be old.");
    else if (status === "locked") announce("The session is over.");
    else if (before.current === "lost") announce("The connection is there again.");
    before.current = status;
  }, [status]);
  if (status === "locked") {
    return html`<div class="banner" role="alert">
      <strong>The session is over.</strong> What you see may be old.
      <button type="button" class="quiet" onClick=${() => location.reload()}>Log in</button>
    </div>`;
  }
  if (status !== "lost") return null;
  return html`<div class="banner" role="alert">
    <strong>The service does not answer.</strong> What you see may be old. This page tries again by itself; if the
    service was stopped, <code>muster up</code> starts it.
  </div>`;
}
