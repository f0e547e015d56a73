// The states of a device: name, place in a bar, and the shape that goes with the colour (a path in 10 by 10).
// Colours are in style.css, as --state-NAME.
const RING = "M5 1.2A3.8 3.8 0 1 0 5 8.8 3.8 3.8 0 1 0 5 1.2ZM5 2.7A2.3 2.3 0 1 1 5 7.3 2.3 2.3 0 1 1 5 2.7Z";
const STEP = (height) => `M1 ${9 - height}H9V9H1Z`;

export const STATES = {
  provisioned: { place: 0, final: true, path: "M1 5.4 2.3 4 4.1 5.8 7.9 1.8 9.2 3.1 4.1 8.4Z" },
  failed: {
    place: 1,
    final: true,
    path: "M2.2 1 5 3.8 7.8 1 9 2.2 6.2 5 9 7.8 7.8 9 5 6.2 2.2 9 1 7.8 3.8 5 1 2.2Z",
  },
  timed_out: { place: 2, final: true, path: "M1.5 1H8.5V2.4L5.9 5 8.5 7.6V9H1.5V7.6L4.1 5 1.5 2.4Z" },
  rejected: {
    place: 3,
    final: true,
    path: "M3.1 .8H6.9L9.2 3.1V6.9L6.9 9.2H3.1L.8 6.9V3.1ZM2.6 4.2V5.8H7.4V4.2Z",
  },
  cancelled: { place: 4, final: true, path: "M1 4H9V6H1Z" },
  activating: { place: 5, path: STEP(8) },
  downloaded: { place: 6, path: STEP(6.5) },
  downloading: { place: 7, path: STEP(5) },
  notified: { place: 8, path: STEP(3.5) },
  packaging: { place: 9, path: STEP(2.5) },
  queued: { place: 10, path: STEP(1.5) },
  new: { place: 11, path: "M5 .8 6.2 3.8 9.2 5 6.2 6.2 5 9.2 3.8 6.2 .8 5 3.8 3.8Z" },
  pending: { place: 12, path: RING },
};

export const IN_WORK = ["queued", "packaging", "notified", "downloading", "downloaded", "activating"];
export const IDLE = ["new", "provisioned", "failed", "timed_out", "rejected", "cancelled"];

const WORDS = { timed_out: "timed out" };

export function label(state) {
  return WORDS[state] ?? String(state).replaceAll("_", " ");
}

/** Of rollouts, runs and orchestrations: a kind, which has a colour, and the words. */
export const STATUSES = {
  scheduled: ["plain", "scheduled"],
  waiting: ["plain", "waiting"],
  running: ["work", "running"],
  paused: ["hold", "paused"],
  awaiting_approval: ["hold", "awaits approval"],
  cancelling: ["hold", "cancelling"],
  completed: ["good", "completed"],
  cancelled: ["plain", "cancelled"],
  terminated: ["bad", "terminated"],
  failed: ["bad", "failed"],
  Running: ["work", "Running"],
  Completed: ["good", "Completed"],
  ContinuedAsNew: ["work", "Continued as new"],
  Failed: ["bad", "Failed"],
  Canceled: ["plain", "Canceled"],
  Terminated: ["bad", "Terminated"],
  Pending: ["plain", "Pending"],
  Suspended: ["hold", "Suspended"],
  done: ["good", "done"],
  pending: ["plain", "to come"],
};

/** A colour of the style sheet, as it is in the present theme. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
