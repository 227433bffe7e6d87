// The slider over two pictures, and the keys of a ballot. One listener each, for whatever the page shows later.
document.addEventListener("input", (event) => {
  if (event.target.matches(".compare input[type=range]")) {
    event.target.closest(".compare").querySelector(".stack").style.setProperty("--cut", `${event.target.value}%`);
  }
});

document.addEventListener("keydown", (event) => {
  const ballot = document.querySelector(".ballot");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const button = ballot?.querySelector(`button[data-keys~=${JSON.stringify(key)}]`);
  const own = key === "Enter" && event.target.closest("button, a, summary"); // presses what has the focus
  const writing = event.target.closest("input, textarea, select, [contenteditable], [role=listbox]");
  if (!button || ballot.offsetParent === null || writing || own || event.repeat) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  button.click();
});
