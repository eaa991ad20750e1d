// The server's models in; which one scores, shown or chosen in the header, out.

import { byId, element } from "./dom.js";

/** @param {import("./state.js").State} state @param {(model: import("./state.js").Model) => void} choose */
export function showModels(state, choose) {
  const place = byId("model");
  const about = element("span", {});
  const show = () => {
    const { precision, device, id } = state.model;
    about.textContent = `${precision} on ${device}`;
    byId("demo").hidden = id !== "mini";
  };
  if (state.models.length > 1) {
    const options = state.models.map((model) => element("option", { value: model.id }, model.id));
    const select = element("select", {}, ...options);
    select.addEventListener("change", () => {
      choose(state.models.find((model) => model.id === select.value));
      show();
    });
    place.replaceChildren(element("label", {}, "Model ", select), " ", about);
  } else {
    place.replaceChildren(element("span", {}, "Model ", element("b", {}, state.model.id)), " ", about);
  }
  show();
}
