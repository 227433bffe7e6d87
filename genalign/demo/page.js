// The slider over two pictures, and the keys of a ballot. One listener each, for whatever the page shows later.
document.addEventListener("input", (event) => {
  if (event.target.matches(".compare input[type=range]")) {
    event.target.closest(".compare").querySelector(".stack").style.setProperty("--cut", `${event.target.value}%`);
  }
});

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", t: "tie", s: "skip", u: "undo" };

document.addEventListener("keydown", (event) => {
  const ballot = document.querySelector(".ballot");
  const choice = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const writing = event.target.closest("input, textarea, select, [contenteditable], [role=listbox]");
  if (!choice || !ballot || ballot.offsetParent === null || writing || event.repeat) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  ballot.querySelector(`button[data-choice=${choice}]`).click();
});
