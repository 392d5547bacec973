"use strict";

// Tables: a click on a column's name sorts by it, missing values last.
function number(text) {
  const found = text.replace("−", "-").match(/^[+-]?[0-9][0-9,]*(\.[0-9]+)?/);
  return found ? parseFloat(found[0].replaceAll(",", "")) : null;
}
function compare(a, b) {
  const x = number(a), y = number(b);
  if (x !== null && y !== null) return x - y;
  if (x !== null) return -1;
  if (y !== null) return 1;
  return a.localeCompare(b);
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const rows = [...body.rows], text = row => row.cells[column].textContent;
    const shown = rows.filter(row => text(row) !== "—"), missing = rows.filter(row => text(row) === "—");
    shown.sort((a, b) => (down ? 1 : -1) * compare(text(a), text(b)));
    body.append(...shown, ...missing);
  }));
}

// Charts: Plotly draws what stands beside each place as JSON.
for (const place of document.querySelectorAll(".chart")) {
  const figure = JSON.parse(document.getElementById(place.id + "-figure").textContent);
  Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false });
}

// Examples: one at a time, with every answer and the teacher's tokens.
const examples = JSON.parse(document.getElementById("examples").textContent);
const cells = [...new Set(examples.map(e => e.task + "/" + e.language))];
const cellSelect = document.getElementById("cell"), exampleSelect = document.getElementById("example");
function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}
function fillExamples() {
  exampleSelect.replaceChildren();
  examples.forEach((e, index) => {
    if (e.task + "/" + e.language === cellSelect.value) {
      const option = element("option", e.example_id);
      option.value = index;
      exampleSelect.append(option);
    }
  });
  showExample();
}
function answerBox(e, a) {
  const box = element("div", "", "answer");
  box.append(element("h4", a.series + (a.seed === null ? "" : ", seed " + a.seed)));
  if (a.scores) box.append(element("div", a.scores, "note"));
  else box.append(element("div", "score " + a.score.toFixed(2), a.score >= 1 ? "right" : "wrong"));
  if (a.written === false) return box;
  box.append(element("pre", a.output === "" ? "(empty)" : a.output));
  if (a.parsed === null) box.append(element("div", "could not be read", "wrong"));
  if (a.prompt !== null) {
    const more = element("details", "");
    more.append(element("summary", "prompt"), element("pre", e.prompts[a.prompt]));
    box.append(more);
  }
  return box;
}
function teacherBox(view, tokens) {
  const box = element("div", "", "answer");
  box.append(element("h4", view));
  for (const t of tokens) {
    const line = element("div", "", t.top[0][0] === t.gold ? "right" : "wrong");
    line.append(element("code", JSON.stringify(t.gold)), " ← ");
    line.append(t.top.map(([text, p]) => JSON.stringify(text) + " " + (100 * p).toFixed(1) + "%").join("  "));
    box.append(line);
  }
  return box;
}
function folded(title, text) {
  const more = element("details", "");
  more.append(element("summary", title), element("pre", text));
  return more;
}
function messageBox(message) {
  const box = element("div", "", "turn " + message.role);
  box.append(element("div", message.role + (message.name ? " " + message.name : ""), "role"));
  if (message.reasoning_content) box.append(folded("reasoning", message.reasoning_content));
  if (message.content) box.append(element("div", message.content, "said"));
  for (const call of message.tool_calls || []) {
    const line = element("div", "", "call");
    line.append(element("code", call.function.name + "(" + JSON.stringify(call.function.arguments) + ")"));
    box.append(line);
  }
  return box;
}
function conversationBox(talk) {
  const box = element("div", "", "talk");
  if (talk.tools.length) {
    const names = talk.tools.map(tool => (tool.function || tool).name).join(", ");
    box.append(folded("tools: " + names, JSON.stringify(talk.tools, null, 1)));
  }
  box.append(...talk.messages.map(messageBox));
  return box;
}
function showExample() {
  const e = examples[exampleSelect.value], place = document.getElementById("shown");
  place.replaceChildren();
  if (!e) return;
  if (e.conversation) {
    place.append(element("h3", "Conversation"), conversationBox(e.conversation));
    const answer = element("div", "", "talk");
    answer.append(messageBox(e.conversation.answer));
    place.append(element("h3", "Reference answer"), answer);
  } else {
    place.append(element("h3", "Question"), element("pre", e.question));
    place.append(element("h3", "Gold"), element("pre", e.gold));
  }
  if (e.answers.length) {
    const grid = element("div", "", "answers");
    grid.append(...e.answers.map(a => answerBox(e, a)));
    place.append(element("h3", "Answers"), grid);
  }
  if (e.teacher.length) {
    const side = element("div", "", "answers"), views = [...new Set(e.teacher.map(t => t.view))];
    side.append(...views.map(view => teacherBox(view, e.teacher.filter(t => t.view === view))));
    place.append(element("h3", "Teacher: five likeliest tokens at each place of the gold answer"), side);
  }
}
if (examples.length) {
  for (const cell of cells) cellSelect.append(element("option", cell));
  cellSelect.addEventListener("change", fillExamples);
  exampleSelect.addEventListener("change", showExample);
  fillExamples();
} else {
  document.getElementById("browser").hidden = true;
}
