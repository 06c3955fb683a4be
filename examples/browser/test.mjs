// A user of the page, in node: draws digits with a hand that jitters, trains, is recognised, saves and
// loads, and does wrong things.
//     node test.mjs index.html sepal_browser.wasm DIR
// runs the page's own code over the module, and leaves in DIR what was drawn and what was learnt of
// it, for the host to do the same (src/bin/replay.rs).
import { readFileSync, writeFileSync } from "node:fs";
import assert from "node:assert/strict";

const [page, module, out] = process.argv.slice(2);
const code = /<script id="learner">([^]*?)<\/script>/.exec(readFileSync(page, "utf8"))[1];
const { learner, fit, raster } = new Function(`${code}; return { learner, fit, raster };`)();
const net = await learner(readFileSync(module));
const NAMES = ["3", "5", "8"];
const KEPT = 20, FRESH = 100;

// Mulberry32: the same jitter on every machine.
let state = 7;
const random = () => {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};
const jitter = (size) => size * (random() + random() + random() - 1.5);

const DIGITS = {
  3: [[[1, 1], [5, 0], [8, 2], [7, 5], [4, 7], [7, 8], [9, 11], [6, 14], [1, 13]]],
  5: [[[8, 0], [2, 0], [1, 6], [5, 5], [9, 8], [8, 12], [5, 14], [1, 13]]],
  8: [[[8, 2], [4, 0], [1, 3], [4, 6], [8, 10], [5, 14], [1, 11], [5, 7], [8, 3]]],
};

/** A digit with other proportions, slant, corners and pen each time. */
function draw(digit) {
  const [wide, slant, turn, pen] = [1 + jitter(0.5), jitter(0.5), jitter(0.3), 1.1 + jitter(0.3)];
  const strokes = DIGITS[digit].map((stroke) => stroke.map(([x, y]) => {
    const [u, v] = [wide * x + slant * y + jitter(1.6), y + turn * x + jitter(1.6)];
    return [u, v];
  }));
  return raster(fit(strokes), pen);
}

const refused = (act, pattern) => assert.throws(act, (error) => pattern.test(error.message) || assert.fail(error.message));
const blank = new Uint8Array(28 * 28);
const kept = [], fresh = [];
for (let i = 0; i < KEPT * NAMES.length; i++) kept.push([i % NAMES.length, draw(NAMES[i % NAMES.length])]);
for (let i = 0; i < FRESH * NAMES.length; i++) fresh.push([i % NAMES.length, draw(NAMES[i % NAMES.length])]);
const recognise = () => {
  const lines = [];
  let right = 0;
  for (const [label, cells] of fresh) {
    net.draw(cells);
    const found = net.predict();
    right += found.label === label;
    const bits = new Uint32Array(Float32Array.from(found.probabilities).buffer);
    lines.push([found.label, +found.none, ...bits].join(" "));
  }
  return { right, lines };
};

// Nothing to learn from, one class, a drawing without a stroke, a class that is not there.
net.draw(blank);
refused(() => net.keep(0), /nothing is drawn/);
refused(() => net.predict(), /nothing is drawn/);
refused(() => net.begin(), /^0 with two drawings/);
refused(() => net.step(), /no training/);
net.draw(kept[0][1]);
assert.equal(net.predict().label, null);
refused(() => net.keep(5), /class 5, counted from 0, of 5/);
for (let i = 0; i < 4; i++) net.keep(0);
refused(() => net.begin(), /^1 with two drawings/);
net.clear();
assert.deepEqual(net.counts().flat().reduce((a, b) => a + b), 0);

// Learns.
for (const [label, cells] of kept) {
  net.draw(cells);
  net.keep(label);
}
const drawn = net.digest();
const [before, unlearnt] = [net.separation(), recognise()];
net.begin();
refused(() => net.begin(), /under way/);
refused(() => net.keep(0), /under way/);
refused(() => net.save(), /under way/);
let steps = 0;
const start = process.cpuUsage().user;
for (let left = 1; left > 0; steps++) left = net.step();
const ms = (process.cpuUsage().user - start) / 1000 / steps;
const [after, taught] = [net.separation(), recognise()];
assert.ok(before.si < 1 && after.si > before.si, `SI ${before.si}, then ${after.si}`);
assert.ok(taught.right > unlearnt.right, `${unlearnt.right}, then ${taught.right} right`);
assert.ok(taught.right >= 0.9 * fresh.length, `${taught.right} of ${fresh.length} right`);
assert.equal(after.heldOut, before.heldOut);
assert.ok(net.hasLearnt() && net.digest() !== drawn);
assert.ok(net.places().every(({ x, y }) => Number.isFinite(x) && Number.isFinite(y)));

// What is saved comes back after everything was forgotten, and nothing else does.
const learnt = net.digest(), saved = net.save();
net.clear();
assert.equal(net.digest(), drawn);
const changed = (at) => saved.map((byte, i) => (i === at ? byte ^ 1 : byte));
for (let at = 0; at < saved.length; at += 997) refused(() => net.resume(changed(at)), /damaged/);
refused(() => net.resume(saved.subarray(1)), /bytes, expected/);
refused(() => net.resume(new Uint8Array(saved.length)), /damaged/);
assert.equal(net.digest(), drawn);
net.resume(saved);
assert.equal(net.digest(), learnt);
assert.deepEqual(recognise(), taught);
net.forget();
assert.equal(net.digest(), drawn);
assert.deepEqual(net.separation().si, before.si);

const record = ([label, cells]) => [label, ...cells];
writeFileSync(`${out}/kept`, Uint8Array.from(kept.flatMap(record)));
writeFileSync(`${out}/fresh`, Uint8Array.from(fresh.flatMap(record)));
writeFileSync(`${out}/learnt`, [learnt, before.si, after.si, ...taught.lines].join("\n") + "\n");
const { module: bytes, arena, memory } = net.sizes;
console.log(`SI ${before.si.toFixed(3)} then ${after.si.toFixed(3)}, held out ${before.right} then ${after.right} of ${after.heldOut}`);
console.log(`${unlearnt.right} then ${taught.right} of ${fresh.length} fresh drawings right`);
console.log(`${ms.toFixed(1)} ms of CPU time a step; module ${bytes}, arena ${arena}, memory ${memory} bytes`);
