// The state in, the list of cards on the page out: made a few at a time, so that hundreds do not freeze it.

import { Card } from "./cards.js";
import { byId } from "./dom.js";
import { arrange } from "./order.js";

const BUDGET = 8; // ms a frame for making and changing cards
const PAUSE = 100; // ms between changes, while many answers come in
const NEAR = "600px"; // above and below what is seen: there, small pictures are made

export class List {
  #state;
  #actions;
  #list = byId("cards");
  #cards = new Map(); // item -> its card
  #ofNode = new WeakMap(); // a card's node -> the card
  #changed = new Set(); // items whose cards are to be drawn
  #planned = false;
  #near = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: NEAR });

  /** @param {import("./state.js").State} state @param {import("./cards.js").Actions} actions */
  constructor(state, actions) {
    this.#state = state;
    this.#actions = actions;
    state.listen((items) => {
      for (const item of items) this.#changed.add(item);
      this.#plan(PAUSE);
    });
  }

  #plan(pause) {
    if (this.#planned) return;
    this.#planned = true;
    this.#list.ariaBusy = "true";
    setTimeout(() => requestAnimationFrame(() => this.#draw()), pause);
  }

  #draw() {
    this.#planned = false;
    const { items, view, model } = this.#state;
    this.#drop(items);
    const end = performance.now() + BUDGET;
    for (const item of this.#changed) {
      this.#changed.delete(item);
      this.#card(item).update(this.#state);
      if (performance.now() > end) break;
    }
    const shown = arrange(items, view, model?.scale ?? [1, 5]);
    this.#place(shown.filter((item) => this.#cards.has(item)).map((item) => this.#cards.get(item).node));
    byId("none-kept").hidden = shown.length > 0 || items.length === 0;
    this.#list.ariaBusy = "false";
    if (this.#changed.size) this.#plan(0);
  }

  #card(item) {
    let card = this.#cards.get(item);
    if (!card) {
      card = new Card(item, this.#actions);
      this.#cards.set(item, card);
      this.#ofNode.set(card.node, card);
      this.#near.observe(card.node);
    }
    return card;
  }

  /** Closes the cards of items that are gone. */
  #drop(items) {
    const there = new Set(items);
    for (const [item, card] of this.#cards) {
      if (there.has(item)) continue;
      this.#near.unobserve(card.node);
      card.close();
      this.#cards.delete(item);
    }
    for (const item of this.#changed) if (!there.has(item)) this.#changed.delete(item);
  }

  /** Puts nodes in this order, moves only those that are out of it, and leaves the keyboard where it was. */
  #place(nodes) {
    const focused = /** @type {HTMLElement} */ (document.activeElement);
    let at = this.#list.firstChild;
    for (const node of nodes) {
      if (node === at) at = at.nextSibling;
      else this.#list.insertBefore(node, at);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
    if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
  }

  #seen(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.#near.unobserve(target);
      this.#ofNode.get(target)?.showPicture();
    }
  }
}
