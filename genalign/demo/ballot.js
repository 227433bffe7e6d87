// Runs once in the element of the ballot. A vote names what was on screen, and is sent once.
// tiers: places of samples of a group, the best first, those of one tier being equal; joining: the next shares its tier.
let tiers = [], joining = false, token;
const ballotNow = () => element.querySelector(".ballot");

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-choice]"), ballot = ballotNow();
  if (!button || !ballot || ballot.dataset.sent) return;
  const choice = button.dataset.choice, move = { place, equal, back }[choice];
  if (event.detail) ballot.focus({ preventScroll: true }); // by mouse: the next Enter is the ballot's, not the button's
  if (move) {
    move([...ballot.querySelectorAll("figure")].indexOf(button.closest("figure")));
    return show(ballot);
  }
  ballot.dataset.sent = "yes";
  ballot.classList.add(`sent-${choice}`);
  const ranks = choice === "rank" ? places(ballot.querySelectorAll("figure").length) : null;
  trigger("submit", { choice, pair: ballot.dataset.pair, ranks });
});

function place(at) {
  if (tiers.flat().includes(at)) return;
  if (joining && tiers.length) tiers.at(-1).push(at);
  else tiers.push([at]);
  joining = false;
}

function equal() {
  joining = !joining && tiers.length > 0;
}

function back() {
  if (joining) return (joining = false);
  tiers.at(-1)?.pop();
  tiers = tiers.filter((tier) => tier.length);
}

// The place of each sample: one more than there are before it; those left out come last together.
function places(count) {
  const ranks = Array(count).fill(tiers.flat().length + 1);
  let before = 0;
  for (const tier of tiers) {
    for (const at of tier) ranks[at] = before + 1;
    before += tier.length;
  }
  return ranks;
}

function show(ballot) {
  const figures = [...ballot.querySelectorAll("figure")], ranks = places(figures.length), placed = tiers.flat();
  figures.forEach((figure, at) => {
    const known = placed.includes(at) || placed.length >= figures.length - 1;
    figure.classList.toggle("placed", known);
    figure.querySelector(".rank").textContent = known ? ranks[at] : "";
  });
  const order = ballot.querySelector(".order"), said = tiers.map((tier) => tier.map((at) => at + 1).join(" = "));
  const rest = figures.map((_, at) => at).filter((at) => !placed.includes(at)).map((at) => at + 1).join(" = ");
  const shown = [...said, rest].filter(Boolean).join(" > ");
  order.textContent = placed.length ? `${shown}${joining ? ", the next one = the last" : ""}` : order.dataset.empty;
}

// Clips and sounds start together and go on until the vote; of several sounds the one pointed at is heard, else the first.
const hear = (figure) => {
  for (const one of element.querySelectorAll("audio")) one.muted = one.closest("figure") !== figure;
};
for (const kind of ["pointerover", "focusin"])
  element.addEventListener(kind, (event) => {
    const figure = event.target.closest("figure");
    if (figure?.querySelector("audio")) hear(figure);
  });

watch("value", () => {
  const ballot = ballotNow(), same = ballot?.dataset.pair === token;
  token = ballot?.dataset.pair;
  if (same) return ballot.classList.contains("group") && show(ballot); // drawn anew, and ranked as far as it was
  tiers = [];
  joining = false;
  hear(element.querySelector("figure"));
  for (const one of element.querySelectorAll("video, audio")) {
    one.loop = true;
    one.currentTime = 0;
    one.play().catch(() => {}); // a browser that waits for a click
  }
});
