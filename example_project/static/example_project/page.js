// The page of the example project. It speaks to AccessPass as any browser application would.
//
// The access token lives in a variable of this module and is gone with a reload. The refresh token
// lives in a cookie that no script can read (REFRESH_COOKIE), and brings a new access token then.
//
// All tabs of a browser share that cookie, so they share one session: a tab that gets an access token
// hands it to the others, and one that signs out takes them along.

const AUTH = "/auth/";
const PATIENCE = 10_000; // ms after which a call counts as not answered
const POLL = 400; // ms between two rounds of questions to the workers
const AGAIN = 2000; // ms before a server that does not answer is asked again
const AT_ONCE = 4; // connections of a round: a worker that is busy leaves the next one to another
const FORGET = 6000; // ms after which a worker that did not answer is shown no more
const SAID = 5000; // ms for which it is said that it answers again
const REMEMBERED = 28; // answers of a worker that are drawn
const SHOWN = 60; // calls that are listed
const ENDED = "This session has ended.";

let access = null; // the access token
let user = null; // who is signed in
let key = null; // what a link of an e-mail has brought
let complained = false; // whether the notice is about a server that could not answer
let ended = null; // {at, token, late}: when every session was revoked, and what was accepted since

const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => [...document.querySelectorAll(selector)];

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const number = (value) => new Intl.NumberFormat("en").format(value);
const clock = (text) =>
  new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
const cost = (answer) => `${answer.status} · ${answer.queries} SQL · ${number(answer.time)} µs`;

// Calls ------------------------------------------------------------------------------------------

async function send(method, path, body, token) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  const signal = AbortSignal.timeout(PATIENCE);
  const options = { method, headers, cache: "no-store", body: body && JSON.stringify(body), signal };
  try {
    const response = await fetch(path, options);
    const content = await response.text();
    return {
      status: response.status,
      body: content ? parsed(content) : {},
      wait: Number(response.headers.get("Retry-After")),
      worker: Number(response.headers.get("X-Demo-Worker")),
      queries: Number(response.headers.get("X-Demo-Queries")),
      time: Number(response.headers.get("X-Demo-Time")),
    };
  } catch {
    return failed("The server does not answer.");
  }
}

function parsed(content) {
  try {
    return JSON.parse(content);
  } catch {
    // A page about an error, of Django or of a proxy.
    return { detail: "The server has failed.", code: "failed" };
  }
}

const failed = (detail) => ({
  status: 0,
  body: { detail, code: "failed" },
  wait: 0,
  worker: 0,
  queries: 0,
  time: 0,
});

/** Return what an answer says to people, with the wait that it asks for (Retry-After). */
function said({ body, wait }) {
  if (!wait) return body.detail;
  const [unit, long] = wait < 120 ? ["second", 1] : ["minute", 60];
  const format = new Intl.NumberFormat("en", { style: "unit", unit, unitDisplay: "long" });
  return `${body.detail} (${format.format(Math.ceil(wait / long))})`;
}

/** Make a call and list it. */
async function call(method, path, body, token) {
  const answer = await send(method, path, body, token);
  list(method, path, body, answer);
  return answer;
}

/** Make a call as the signed-in user; an access token that has expired is replaced, once. */
async function callAsUser(method, path, body) {
  const [token, id] = [access, user?.id];
  const answer = await call(method, path, body, token);
  if (answer.body.code !== "invalid_token") return answer;
  const renewed = await renew(token);
  if (renewed.status !== 200) return renewed;
  // What one user has asked for is not done as another.
  if (user?.id !== id) return failed("Another user has signed in meanwhile.");
  return call(method, path, body, access);
}

/** Replace an access token by the cookie, unless another call or tab has; return who one is. */
async function renew(token = access) {
  // One at a time of all tabs: a session has a few access tokens only, and a new one ends the oldest.
  const refused = await navigator.locks.request("refresh", async () => {
    if (access !== token) return null;
    const answer = await call("POST", `${AUTH}refresh/`, {});
    if (answer.status !== 200) return answer;
    access = answer.body.access_token;
    tell();
    return null;
  });
  if (refused === null) return identify();
  if (gone(refused) && user) signOut(ENDED);
  return refused;
}

/** Ask who one is. The cookie may be that of somebody who has signed in in another tab. */
async function identify() {
  const token = access;
  const answer = await call("GET", `${AUTH}check/`, null, token);
  if (token !== access) return answer;
  if (answer.status === 200) showUser(answer);
  if (gone(answer) && user) signOut(ENDED);
  return answer;
}

/** Return whether an answer says that there is no session, and not that nobody can tell now. */
const gone = ({ status, body }) => status === 401 || body.code === "token_required";
const lost = ({ status }) => status === 0 || status >= 500;

const SECRET = /password|token$|^key$/;

function cut(name, value) {
  if (!SECRET.test(name) || typeof value !== "string") return value;
  const token = /^[a-z]+_(at|rt|ek)_/.exec(value);
  return token ? `${token[0]}…${value.slice(-4)}` : "••••••••";
}

function list(method, path, body, answer) {
  const kind = answer.status >= 200 && answer.status < 300 ? "good" : "bad";
  const lines = [`${method} ${path}`];
  if (body && Object.keys(body).length) lines.push(JSON.stringify(body, cut, 1));
  lines.push("", `${answer.status || "no answer"}, by worker ${answer.worker || "?"}`);
  if (Object.keys(answer.body).length) lines.push(JSON.stringify(answer.body, cut, 1));
  const summary = element(
    "summary",
    {},
    element("span", { className: "what" }, `${method} ${path}`),
    element("span", { className: `pill ${kind}` }, String(answer.status || "—")),
    element(
      "span",
      { className: "spent" },
      `${answer.queries} SQL · ${number(answer.time)} µs · worker ${answer.worker || "?"}`,
    ),
  );
  const details = element("details", {}, summary, element("pre", {}, lines.join("\n")));
  $("#calls").prepend(element("li", {}, details));
  while ($("#calls").children.length > SHOWN) $("#calls").lastChild.remove();
}

// The other tabs ---------------------------------------------------------------------------------

const tabs = new BroadcastChannel("session");

/** Hand the access token to the other tabs; without one, let those with the token `was` sign out. */
function tell(was = null) {
  tabs.postMessage({ token: access, was });
}

tabs.addEventListener("message", async ({ data: { token, was } }) => {
  if (!token) {
    if (was === access && !ending) leave("You are signed out.", location.pathname);
    return;
  }
  const [signedIn, over, loaded] = [user !== null, ended !== null, view !== null];
  access = token;
  ended = null;
  if ((await identify()).status !== 200) return;
  if (!signedIn && loaded) notify(elsewhere());
  show();
  if (over) await showDevices();
});

// What is shown ----------------------------------------------------------------------------------

const VIEWS = {
  "/": () => (user || ended ? "account" : "sign-in"),
  "/register": () => "register",
  "/forgot": () => "forgot",
  "/outbox": () => "outbox",
  "/confirm": () => (key ? "confirm" : "no-key"),
  "/reset-password": () => (key ? "reset-password" : "no-key"),
  "/confirm-email": () => (key ? "confirm-email" : "no-key"),
};
let view = null;

/** Show what belongs to the address; a new view gets the focus, so that it is read out. */
function show() {
  const next = (VIEWS[location.pathname] ?? VIEWS["/"])();
  for (const section of $$("[data-view]")) section.hidden = section.dataset.view !== next;
  for (const part of $$("[data-when]")) {
    const states = { in: user !== null, out: user === null, ended: ended !== null };
    part.hidden = !states[part.dataset.when];
  }
  for (const link of $$("nav a")) {
    const shown = !link.hidden && !(ended && next === "account");
    const current = shown && link.pathname === location.pathname;
    link.toggleAttribute("aria-current", current);
    if (current) link.setAttribute("aria-current", "page");
  }
  $("#waiting")?.remove();
  const title = $(`[data-view="${next}"] h1`);
  document.title = `${title.textContent} – AccessPass`;
  if (view !== null && view !== next) {
    title.focus();
    scrollTo(0, 0);
  }
  const changed = view !== next;
  view = next;
  if (changed) for (const form of $$("form")) showErrors(form, {});
  if (changed && view === "outbox") showMails();
  if (changed && view === "account" && user) showDevices();
  if (view === "account") watch();
}

function go(path, message, link) {
  notify(message, link);
  if (path !== location.pathname) history.pushState(null, "", path);
  show();
}

/** Say something in the live region, with a link to the outbox if mail is on its way. */
function notify(message, link) {
  complained = false;
  const parts = message ? [element("p", { className: "notice" }, message)] : [];
  if (link && $('nav a[href="/outbox"]')) {
    parts[0].append(element("a", { href: "/outbox" }, "Open the outbox"));
  }
  $("#notice").replaceChildren(...parts);
}

/** Say why something was not done. */
function complain(answer) {
  notify(said(answer));
  complained = lost(answer);
}

/** Say, in a live region of its own, that the server is lost, and that it is back. */
function connected(answer) {
  const text = lost(answer) ? `${said(answer)} This page keeps trying.` : BACK;
  const before = $("#lost").textContent;
  if (text === before || (text === BACK && !before)) return;
  $("#lost").replaceChildren(element("p", { className: "notice" }, text));
  if (text !== BACK) return;
  if (complained) notify(); // true no more
  setTimeout(() => $("#lost").textContent === BACK && $("#lost").replaceChildren(), SAID);
}

const BACK = "The server answers again.";

function fill(name, text) {
  for (const place of $$(`[data-text="${name}"]`)) place.textContent = text;
}

function showUser(answer) {
  const before = user;
  user = answer.body.user;
  fill("username", user.username);
  fill("email", user.email);
  fill("confirmed", answer.body.email_confirmed ? "confirmed" : "not confirmed");
  $('[data-text="confirmed"]').classList.toggle("good", answer.body.email_confirmed);
  $('[data-do="resend"]').hidden = answer.body.email_confirmed;
  fill("check-cost", cost(answer));
  if (before && before.id !== user.id) {
    for (const form of $$("form")) form.reset();
    notify(elsewhere());
    showDevices();
  }
}

const elsewhere = () => `${user.username} has signed in in another tab.`;

/** Ask who one is, and which devices there are, and show the account; return whether it is shown. */
async function enter(message, link) {
  const answer = await callAsUser("GET", `${AUTH}check/`);
  if (answer.status !== 200) {
    if (!gone(answer)) complain(answer);
    return false;
  }
  showUser(answer);
  const already = view === "account" && !ended;
  ended = null;
  go("/", message, link);
  if (already) await showDevices();
  return true;
}

/** Take the tokens of an answer, and enter. */
async function signIn(answer, message, link) {
  access = answer.body.access_token;
  user = null;
  tell();
  await enter(message, link);
}

/** Forget the user, here and in the other tabs. */
function signOut(message) {
  const was = access;
  leave(message, key ? location.pathname : "/"); // what a link was opened for goes on
  if (was) tell(was);
}

function leave(message, path) {
  access = user = ended = null;
  workers.clear();
  $("#workers").replaceChildren();
  for (const form of $$("form")) form.reset();
  go(path, message);
}

async function showDevices() {
  const answer = await callAsUser("GET", `${AUTH}sessions/`);
  if (answer.status !== 200) return;
  const told = JSON.stringify(answer.body, (name, value) => (name === "last_used_at" ? "" : value));
  if (told === $("#devices").dataset.told) return; // the focus may be in the list
  $("#devices").dataset.told = told;
  $("#devices").replaceChildren(
    ...answer.body.map((session) => {
      const name = session.device || "Unknown device";
      const since = `signed in ${clock(session.created_at)}`;
      const text = element("div", {}, element("b", {}, name), " ");
      const item = element("li", {}, text);
      if (session.current) {
        text.append(element("span", { className: "pill good" }, "this one"));
      } else {
        const label = `Revoke ${name}, ${since}`;
        const button = element("button", { type: "button", className: "quiet" }, "Revoke");
        button.setAttribute("aria-label", label);
        button.addEventListener("click", () => once(button, () => revoke(session, name)));
        item.append(button);
      }
      text.append(element("br"), element("small", {}, `${session.ip ?? ""} · ${since}`));
      return item;
    }),
  );
}

async function revoke(session, name) {
  const answer = await callAsUser("DELETE", `${AUTH}sessions/${session.id}/`);
  if (!user) return;
  if (answer.status === 204 || answer.status === 404) notify(`${name} is signed out.`);
  else if (answer.status === 202) notify("It is being signed out.");
  else complain(answer);
  await showDevices();
  $("#devices-title").scrollIntoView({ block: "nearest" });
  ($("#devices button") ?? $('[data-do="check"]')).focus();
}

// The workers ------------------------------------------------------------------------------------

const workers = new Map(); // process id → what it answered
const STATES = { 200: ["good", "accepts"], 401: ["bad", "refuses"] };
let watching = false;
let ending = null; // "Revoke everywhere", as long as it is under way

/** Ask the workers about the token as long as the account is shown. */
async function watch() {
  if (watching) return;
  watching = true;
  while (view === "account" && (ended?.token ?? access)) {
    if (document.visibilityState === "visible") await askWorkers();
    const waiting = ended && [...workers.values()].some((worker) => worker.refused === null);
    await pause(waiting ? 0 : POLL);
  }
  watching = false;
}

async function askWorkers() {
  const token = ended?.token ?? access;
  const round = await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      const sent = performance.now();
      const answer = await send("GET", "/hello/", null, token);
      return [answer, sent, performance.now()];
    }),
  );
  await ending; // a worker may refuse before the answer to that has arrived
  if (token !== (ended?.token ?? access)) return;
  if (!ended && round.some(([answer]) => answer.status === 401)) {
    // Expired, which the cookie mends, or revoked from elsewhere, which it does not.
    connected(await renew(token));
    return;
  }
  const answers = round.map(([answer]) => answer);
  connected(answers.find((answer) => !lost(answer)) ?? answers[0]);
  round.sort(([, , one], [, , other]) => one - other);
  for (const answered of round) note(...answered);
  for (const [pid, worker] of workers) {
    if (performance.now() - worker.seen > FORGET) workers.delete(pid);
  }
  drawWorkers();
}

function note(answer, sent, received) {
  if (!answer.worker) return;
  const worker = workers.get(answer.worker) ?? { past: [], refused: null };
  workers.set(answer.worker, worker);
  worker.last = answer;
  worker.seen = received;
  worker.past = [...worker.past, answer.status].slice(-REMEMBERED);
  if (!ended) return;
  if (answer.status === 200 && sent > ended.at) ended.late += 1;
  if (answer.status === 401 && worker.refused === null) {
    worker.refused = received - ended.at;
    happened(worker.refused, `worker ${answer.worker} refuses: ${cost(answer)}`);
  }
}

/** Put into the timeline what happened then: a refusal may arrive before the acknowledgement. */
function happened(after, text) {
  const when = element("b", {}, `${after.toFixed(0)} ms`);
  const item = element("li", { "data-after": String(after) }, when, element("span", {}, text));
  const later = $$("#timeline li").find((other) => Number(other.dataset.after) > after);
  $("#timeline").insertBefore(item, later ?? null);
}

/** Change a text only if it is another one: a selection stays, and nothing is read out twice. */
function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

function makeCard(pid) {
  const bars = Array.from({ length: REMEMBERED }, () => element("i"));
  const [state, last] = [element("span"), element("div", { className: "last" })];
  const head = element("div", { className: "head" }, element("b", {}, String(pid)), state);
  const strip = element("div", { className: "strip", "aria-hidden": "true" }, ...bars);
  return { item: element("li", {}, head, strip, last), state, bars, last };
}

function drawWorkers() {
  const list = [...workers].sort(([one], [other]) => one - other);
  for (const [pid, worker] of list) {
    const { item, state, bars, last } = (worker.card ??= makeCard(pid));
    const [kind, text] = STATES[worker.last.status] ?? ["", "fails"];
    item.className = kind;
    state.className = `pill ${kind}`;
    write(state, text);
    write(last, cost(worker.last));
    const from = worker.past.length - REMEMBERED;
    bars.forEach((bar, at) => (bar.className = STATES[worker.past[from + at]]?.[0] ?? ""));
  }
  const items = list.map(([, worker]) => worker.card.item);
  const shown = [...$("#workers").children];
  if (items.length !== shown.length || items.some((item, at) => item !== shown[at])) {
    $("#workers").replaceChildren(...items);
  }
  if (!ended) return;
  const refusing = list.filter(([, worker]) => worker.refused !== null).length;
  write(
    $("#verdict"),
    refusing === list.length
      ? `All ${refusing} workers refuse. Requests accepted since: ${ended.late || "none"}.`
      : `${refusing} of ${list.length} workers refuse.`,
  );
}

async function endAll() {
  ending = end();
  await ending;
  ending = null;
  if (!ended) return;
  $("#ending h3").tabIndex = -1;
  $("#ending h3").focus();
  await askWorkers(); // now, and not when the next round is due
}

async function end() {
  const answer = await callAsUser("POST", `${AUTH}logout/all/`);
  if (!user) return;
  if (answer.status !== 204 && answer.status !== 202) {
    complain(answer);
    return;
  }
  $("#timeline").replaceChildren();
  $("#verdict").textContent = "";
  ended = { at: performance.now(), token: access, late: 0 };
  const what = answer.status === 204 ? "revoked, and acknowledged" : "revoked, to be acknowledged";
  happened(0, `${what} by worker ${answer.worker}: ${cost(answer)}`);
  access = user = null; // but the workers are still asked about the token
  tell(ended.token);
  notify("Every session of yours has ended, this one too.");
  show();
}

// The outbox -------------------------------------------------------------------------------------

/** Show the mails, and those that come, as long as they are looked at. */
async function showMails() {
  let shown = null; // the text of each
  while (view === "outbox") {
    const answer = await send("GET", "/outbox/mails/");
    connected(answer);
    const { mails } = answer.body;
    if (mails) {
      const texts = mails.map((mail) => JSON.stringify(mail));
      const more = texts.length - (shown?.length ?? 0);
      if (shown?.length && shown.every((text, at) => text === texts[more + at])) {
        $("#mails").prepend(...mails.slice(0, more).map(drawMail)); // the focus may be further down
      } else {
        const none = element("li", {}, "No e-mail was sent yet.");
        $("#mails").replaceChildren(...(mails.length ? mails.map(drawMail) : [none]));
      }
      shown = texts;
    }
    await pause(1000);
  }
}

function drawMail(mail) {
  const text = element("pre");
  for (const part of mail.text.trim().split(/(https?:\/\/\S+)/)) {
    // The key in it is used by whoever presses the button behind the link.
    text.append(/^https?:/.test(part) ? element("a", { href: part }, part) : part);
  }
  const title = element("h2", {}, mail.subject);
  const about = element("p", {}, `To ${mail.to}, ${clock(mail.sent_at)}`);
  return element("li", {}, element("article", { className: "card" }, title, about, text));
}

// Forms ------------------------------------------------------------------------------------------

const MAIL = "If there is such an account, an e-mail is on its way.";
const FORMS = {
  "sign-in": [(body) => call("POST", `${AUTH}login/`, body), (answer) => signIn(answer)],
  register: [
    (body) => call("POST", `${AUTH}register/`, body),
    (answer) => signIn(answer, "Welcome. Please confirm your e-mail address.", true),
  ],
  "forgot-password": [
    (body) => call("POST", `${AUTH}password/reset/`, body),
    () => notify(MAIL, true),
  ],
  "forgot-username": [
    (body) => call("POST", `${AUTH}username/forgot/`, body),
    () => notify(MAIL, true),
  ],
  confirm: [
    (body) => call("POST", `${AUTH}confirm/`, body),
    () => confirmed("Your e-mail address is confirmed."),
  ],
  "confirm-email": [
    (body) => call("POST", `${AUTH}email/change/confirm/`, body),
    () => confirmed("The new e-mail address is yours."),
  ],
  "reset-password": [
    (body) => call("POST", `${AUTH}password/reset/confirm/`, body),
    passwordSet,
  ],
  "change-password": [
    (body) => callAsUser("POST", `${AUTH}password/change/`, body),
    () => enter("The password is changed, and every other device is signed out."),
  ],
  "change-email": [
    (body) => callAsUser("POST", `${AUTH}email/change/`, body),
    () => notify("A link is on its way to the new address.", true),
  ],
  "delete-account": [
    (body) => callAsUser("POST", `${AUTH}account/delete/`, body),
    () => signOut("The account is deleted."),
  ],
};

/** Leave a link's page. Its key may be that of another account than the one signed in here. */
async function confirmed(message) {
  const shown = () => $(".about").textContent; // the address, and whether it is confirmed
  const before = user && shown();
  key = null;
  if (user) tell();
  const entered = user && (await enter());
  if (!user) go("/", message);
  else if (entered) notify(shown() === before ? "Done, for another account than this." : message);
}

async function passwordSet() {
  const message = "The password is set, and every session of its account has ended.";
  key = null;
  if (user) await callAsUser("GET", `${AUTH}check/`);
  go("/", user ? message : `${message} Sign in with it.`);
}

/** Do something that a button asks for, and not twice at the same time. */
async function once(button, work) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true"); // not disabled, which would lose the focus
  try {
    await work();
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

async function submit(form) {
  showErrors(form, {});
  const body = Object.fromEntries(new FormData(form));
  if ("needsKey" in form.dataset) body.key = key;
  const [ask, then] = FORMS[form.dataset.form];
  const answer = await ask(body);
  if (answer.status >= 200 && answer.status < 300) {
    notify();
    form.reset();
    const details = form.closest("details");
    if (details?.open) {
      details.open = false;
      details.querySelector("summary").focus();
    }
    await then(answer);
  } else if (form.checkVisibility()) {
    showErrors(form, { ...answer.body, detail: said(answer) });
  }
}

/** Show what was refused beside its fields, and go to the first of them. */
function showErrors(form, { detail, errors = {} }) {
  for (const old of form.querySelectorAll(".error")) old.remove();
  let first = null;
  for (const input of form.querySelectorAll("input")) {
    const found = errors[input.name];
    input.toggleAttribute("aria-invalid", false);
    input.removeAttribute("aria-describedby");
    if (!found) continue;
    const id = `${form.dataset.form}-${input.name}-error`;
    const text = found.map((error) => error.message).join(" ");
    input.closest("label").after(element("p", { className: "error", id }, text));
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", id);
    first ??= input;
  }
  const others = Object.keys(errors).filter((name) => !form.elements[name]);
  const rest = others.flatMap((name) => errors[name].map((error) => error.message));
  const text = rest.join(" ") || (first ? "" : detail);
  if (text) {
    const alert = element("p", { className: "error", role: "alert" }, text);
    form.querySelector("button").before(alert);
  }
  (first ?? (detail && form.querySelector("input")))?.focus();
}

// Beginning --------------------------------------------------------------------------------------

const DO = {
  check: async () => {
    const answer = await callAsUser("GET", `${AUTH}check/`);
    if (answer.status === 200) {
      showUser(answer);
      if (view === "account") await showDevices();
    } else if (user) complain(answer);
  },
  resend: async () => {
    const answer = await call("POST", `${AUTH}confirm/resend/`, { username: user.username });
    if (answer.status === 202) notify("An e-mail is on its way.", true);
    else complain(answer);
  },
  "log-out": async () => {
    const answer = await call("POST", `${AUTH}logout/`, {}, access);
    if (answer.status === 204 || answer.status === 202) signOut("You are signed out.");
    else complain(answer);
  },
  "end-all": endAll,
  "sign-in-again": () => leave(null, "/"),
  dismiss: () => {
    notify();
    $(`[data-view="${view}"] h1`)?.focus();
  },
};

/** Take the key of a link out of the address bar, the history and what is shared from there. */
function takeKey() {
  const brought = new URLSearchParams(location.hash.slice(1));
  if (!brought.has("key")) return;
  key = brought.get("key");
  for (const form of $$("[data-needs-key]")) showErrors(form, {});
  history.replaceState(null, "", location.pathname);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link && (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)) return;
  const button = event.target.closest("[data-do]");
  const ours = link && link.origin === location.origin && !link.hash && link.pathname in VIEWS;
  if (button || ours) event.preventDefault();
  if (button) once(button, DO[button.dataset.do]);
  else if (ours) go(link.pathname);
});
document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  once(form.querySelector("button"), () => submit(form));
});
window.addEventListener("popstate", () => {
  notify();
  takeKey();
  show();
});
document.addEventListener("visibilitychange", () => {
  // The address may have been confirmed elsewhere, or the session ended.
  if (document.visibilityState === "visible" && user) DO.check();
});

// A message that follows who reads must not cover what gets the focus.
new ResizeObserver(([{ target }]) => {
  document.documentElement.style.setProperty("--said", `${target.offsetHeight}px`);
}).observe($(".said"));

$("#waiting").hidden = false;
takeKey();
let began = await renew();
show();
while (lost(began) && !user) {
  connected(began);
  await pause(AGAIN);
  began = await renew();
  show();
}
connected(began);
