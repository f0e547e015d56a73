// Addresses are after the hash, so that each can be shared: #/rollouts/rollout-1.
import { useEffect, useState } from "./vendor/preact/hooks.module.js";

/** The parts of the present address and its query. */
export function current() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter((part) => part !== "");
  return { parts: parts.map(decoded), search: new URLSearchParams(search), address: location.hash };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** An address of the page: link("rollouts", id). */
export function link(...parts) {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

export function go(address) {
  location.hash = address;
}

/** Change the query of the present address, with nothing in the history. */
export function replaceQuery(parameters) {
  const [path] = location.hash.split("?");
  const search = new URLSearchParams(
    Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined),
  ).toString();
  history.replaceState(null, "", `${path || "#/"}${search && `?${search}`}`);
}

export function useRoute() {
  const [route, setRoute] = useState(() => ({ ...current(), visit: 0 }));
  useEffect(() => {
    // A list whose filters are in the address begins anew with each visit, also where one leads to another.
    const changed = () => setRoute(({ visit }) => ({ ...current(), visit: visit + 1 }));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}
