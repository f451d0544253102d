"use strict";
const MOST_CELLS = 4e6; // Of the diff's table. Larger pairs are shown as entirely replaced.

/** Word diff of two texts: [["same" | "gone" | "new", text], ...], by a longest common subsequence between the common ends. */
function wordDiff(before, after) {
  const words = (text) => text.match(/\s+|[\p{L}\p{N}\p{M}_]+|[^\s]/gu) || [];
  const a = words(before), b = words(after), out = [];
  let start = 0, endA = a.length, endB = b.length;
  while (start < endA && start < endB && a[start] === b[start]) start++;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
  const add = (kind, list) => {
    const text = list.join(""), last = out[out.length - 1];
    if (!text) return;
    if (last && last[0] === kind) last[1] += text; else out.push([kind, text]);
  };
  add("same", a.slice(0, start));
  const n = endA - start, m = endB - start, width = m + 1;
  if (n * m > MOST_CELLS) {
    add("gone", a.slice(start, endA)); add("new", b.slice(start, endB));
  } else {
    const best = new Uint16Array((n + 1) * width); // Length of the longest common subsequence of the two rests; at most 2,000, because of MOST_CELLS.
    for (let i = n - 1; i >= 0; i--) {
      for (let j = m - 1; j >= 0; j--) {
        best[i * width + j] = a[start + i] === b[start + j]
          ? best[(i + 1) * width + j + 1] + 1
          : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
      }
    }
    for (let i = 0, j = 0; i < n || j < m;) {
      if (i < n && j < m && a[start + i] === b[start + j]) { add("same", [a[start + i]]); i++; j++; }
      else if (i < n && (j === m || best[(i + 1) * width + j] >= best[i * width + j + 1])) add("gone", [a[start + i++]]);
      else add("new", [b[start + j++]]);
    }
  }
  add("same", a.slice(endA));
  return out;
}
