// Runs once in the element of the ballot. A vote names the pair that was on screen, and is sent once.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-choice]");
  const ballot = element.querySelector(".ballot");
  if (!button || !ballot || ballot.dataset.sent) return;
  ballot.dataset.sent = "yes";
  ballot.classList.add(`sent-${button.dataset.choice}`);
  trigger("submit", { choice: button.dataset.choice, pair: ballot.dataset.pair });
});

// Clips and sounds of a pair start together, and go on until the vote.
watch("value", () => {
  const playing = [...element.querySelectorAll("video, audio")];
  for (const one of playing) {
    one.loop = true;
    one.currentTime = 0;
    one.play().catch(() => {}); // a browser that waits for a click
  }
});
