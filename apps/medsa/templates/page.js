"use strict";
// Every few seconds the page is fetched again, and only sections that changed are exchanged: nothing flickers, and what
// somebody has opened or is about to press stays.
(function () {
  const known = new Map();
  for (const section of document.querySelectorAll("section[id]")) known.set(section.id, section.outerHTML);

  function inUse(section) {
    return section.querySelector("details[open] form") !== null;
  }

  function exchange(fresh) {
    const old = document.getElementById(fresh.id);
    const html = fresh.outerHTML;
    if (!old || known.get(fresh.id) === html || inUse(old)) return;
    const placed = document.importNode(fresh, true);
    const focused = old.contains(document.activeElement) ? document.activeElement.closest("details") : null;
    for (const details of old.querySelectorAll("details[open]")) {
      const again = placed.querySelector("#" + CSS.escape(details.id));
      if (again) again.open = true;
    }
    known.set(fresh.id, html);
    old.replaceWith(placed);
    const summary = focused && placed.querySelector("#" + CSS.escape(focused.id) + " > summary");
    if (summary) summary.focus({ preventScroll: true });
  }

  async function refresh() {
    const offline = document.getElementById("offline");
    try {
      const answer = await fetch(location.href, { cache: "no-store", credentials: "same-origin" });
      if (!answer.ok) throw new Error(String(answer.status));
      const found = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const section of found.querySelectorAll("section[id]")) exchange(section);
      offline.hidden = true;
    } catch {
      offline.hidden = false;
    }
  }

  setInterval(function () { if (!document.hidden) refresh(); }, 3000);
})();
