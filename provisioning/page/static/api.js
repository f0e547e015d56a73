// Calls of the service's API. An error is a problem after RFC 9457, which says what to do; so does one of the network.

export class ApiError extends Error {
  constructor(title, detail, status = 0, key = null) {
    super(detail);
    this.title = title;
    this.status = status;
    this.key = key;
  }
}

// A plan's and a fleet's errors begin with the key at fault: "waves[1].percent: …".
const KEY = /^([A-Za-z_][\w-]*(?:\[\d+\])?(?:\.[\w-]+(?:\[\d+\])?)*): /;

async function call(method, path, { json, body, signal, headers = {} } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      headers: json === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: json === undefined ? body : JSON.stringify(json),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(
      "The service does not answer",
      "It may have been stopped: `muster up` starts it, and this page goes on by itself.",
    );
  }
  if (response.status === 304) return { status: 304, headers: response.headers, data: null };
  const text = await response.text();
  let data = null;
  try {
    data = text === "" ? null : JSON.parse(text);
  } catch {
    data = text;
  }
  if (!response.ok) {
    const detail = data?.detail ?? `${method} ${path} was answered with ${response.status}.`;
    throw new ApiError(
      data?.title ?? "That did not work",
      detail,
      response.status,
      KEY.exec(detail)?.[1] ?? null,
    );
  }
  return { status: response.status, headers: response.headers, data };
}

export const get = async (path, options) => (await call("GET", path, options)).data;
export const getWhole = (path, options) => call("GET", path, options);
export const post = async (path, json, options) => (await call("POST", path, { json, ...options })).data;
export const postForm = async (path, body) => (await call("POST", path, { body })).data;
export const remove = async (path) => (await call("DELETE", path)).data;

/** A path with its parts encoded: path`/api/devices/${id}`. */
export function path(strings, ...parts) {
  return strings.reduce((so_far, text, i) => so_far + encodeURIComponent(parts[i - 1]) + text);
}

/** A query, without what is empty. */
export function query(parameters) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") found.append(name, one);
    }
  }
  const text = found.toString();
  return text === "" ? "" : `?${text}`;
}
