// Where the reader is in a conversation. It stays there when the page is loaded or drawn again; at the end, it follows what is written.

import * as store from "./store.js";

const NEAR_END = 120; // px
const PARTS = ".question, .thought .step, .reply > :is(.content, .answer, .chains, .end)";

export class Scroll {
  // `views` are the turns that are seen, by id.
  constructor(element, id, views) {
    Object.assign(this, { element, id, views });
    this.following = true;
    element.addEventListener("scroll", () => {
      if (!element.clientHeight) return; // not seen
      this.following = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_END;
      this.save();
    });
    element.addEventListener("toggle", () => this.save(), true);
  }

  // What is read is about to change its height, or is gone.
  save() {
    if (!this.element.clientHeight || !this.element.isConnected) return;
    const open = Object.fromEntries([...this.views].map(([id, view]) => [id, view.reply.thought.folded]).filter(([, folded]) => folded !== null));
    const place = { id: this.id, following: this.following, open };
    const top = this.following ? 0 : this.element.getBoundingClientRect().top;
    for (const [turn, view] of this.following ? [] : this.views) { // one who follows is at the end
      const part = [...view.element.querySelectorAll(PARTS)].findIndex((one) => one.offsetHeight && one.getBoundingClientRect().bottom > top);
      if (part < 0) continue;
      Object.assign(place, { turn, part, offset: view.element.querySelectorAll(PARTS)[part].getBoundingClientRect().top - top });
      break;
    }
    store.savePlace(place);
  }

  restore() {
    const place = store.place();
    const known = place?.id === this.id ? place : null;
    for (const [id, open] of Object.entries(known?.open ?? {})) this.views.get(id)?.reply.thought.fold(open);
    this.following = known?.following !== false;
    this.go(known);
    // Fonts that come later change heights.
    const { scrollTop } = this.element;
    document.fonts.ready.then(() => { if (this.element.scrollTop === scrollTop) this.go(known); });
  }

  go(place) {
    const part = this.views.get(place?.turn)?.element.querySelectorAll(PARTS)[place.part];
    if (this.following || !part) this.element.scrollTop = this.element.scrollHeight;
    else this.element.scrollTop += part.getBoundingClientRect().top - this.element.getBoundingClientRect().top - place.offset;
  }

  // Text has been added at the end.
  grown() {
    if (this.following) this.element.scrollTop = this.element.scrollHeight;
  }
}
