"""The looks of a report's page: those of the server's page; light, dark, narrow and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f5f6f7; --surface: #ffffff; --well: #e8ebee; --ink: #171b20; --muted: #555e6a; --line: #d5dae0;
  --accent: #0d6b70; --error: #a3261d;
  --level-0: #0d6b70; --level-1: #54a09b; --level-2: #b3ab72; --level-3: #d98a4b; --level-4: #b5443a;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #121518; --surface: #1b1f24; --well: #2b3138; --ink: #e9ecef; --muted: #a5afba; --line: #30373f;
    --accent: #5ec6c4; --error: #ff9d92;
    --level-0: #5ec6c4; --level-1: #3d8f8c; --level-2: #a39b63; --level-3: #d08a52; --level-4: #d6655b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 3rem; max-width: 72rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1, h2, h3, p, ul, ol, dl, dd, figure { margin: 0; padding: 0; }
h1 { font-size: 1.5rem; line-height: 1.25; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 0.75rem; }
h3 { font-size: 1rem; margin-bottom: 0.75rem; }
.sub, .note { color: var(--muted); font-size: 0.875rem; overflow-wrap: anywhere; }
.note { margin-top: 0.5rem; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.card { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.25rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.grid, .card { margin-top: 1rem; }
.grid .card, h2 + .card { margin-top: 0; }
.facts { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin-top: 1.25rem; }
.facts dt { color: var(--muted); font-size: 0.8125rem; }
.facts dd { font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.options { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; font-size: 0.875rem; }
.options dt { color: var(--muted); }
.options dd { overflow-wrap: anywhere; min-width: 0; }
svg { display: block; width: 100%; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.level-0 { fill: var(--level-0); background: var(--level-0); }
.level-1 { fill: var(--level-1); background: var(--level-1); }
.level-2 { fill: var(--level-2); background: var(--level-2); }
.level-3 { fill: var(--level-3); background: var(--level-3); }
.level-4 { fill: var(--level-4); background: var(--level-4); }
.bars svg { height: 12rem; border-bottom: 1px solid var(--line); }
.axis { display: flex; justify-content: space-between; color: var(--muted); font-size: 0.8125rem; }
.words { display: grid; grid-template-columns: repeat(5, 1fr); text-align: center; font-size: 0.8125rem; }
.words span { border-top: 3px solid; padding-top: 0.15rem; min-width: 0; }
.shares svg { height: 1.25rem; border-radius: 4px; margin-bottom: 0.75rem; }
.key { display: inline-block; width: 0.75rem; height: 0.75rem; border-radius: 3px; margin-right: 0.5rem;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.spark svg { width: 6rem; height: 1.5rem; margin-left: auto; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 0.875rem; }
th, td { padding: 0.3rem 0.5rem; text-align: right; border-top: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; font-weight: 400; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-top: 0; color: var(--muted); font-size: 0.8125rem; white-space: nowrap; }
.name, .words-cell { text-align: left; overflow-wrap: anywhere; min-width: 9rem; }
.narrow-name { text-align: left; min-width: 0; }
.bad { color: var(--error); }
.none { color: var(--muted); }
.list { list-style: none; font-size: 0.875rem; }
.list li { display: flex; gap: 0.75rem; align-items: center; padding: 0.3rem 0; border-top: 1px solid var(--line);
  break-inside: avoid; }
.list li:first-child { border-top: 0; }
.list b { font-variant-numeric: tabular-nums; min-width: 3.2rem; }
.list bdi { overflow-wrap: anywhere; min-width: 0; }
.list img, .list .no-picture { flex: none; width: 6rem; height: 4.5rem; object-fit: contain; background: var(--well);
  border-radius: 6px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media (max-width: 40rem) {
  .wide { display: none; }
  .name { min-width: 6.5rem; }
  .card { padding: 0.85rem 0.9rem; }
}
@media print {
  @page { margin: 14mm; }
  :root { color-scheme: light; --ground: #ffffff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .card { break-inside: avoid; border-color: #bbb; }
  .card.long { break-inside: auto; }
  tr, li { break-inside: avoid; }
  tbody tr:first-child { break-before: avoid; }
  h2, h3 { break-after: avoid; }
  .bars svg { height: 9rem; }
  .wide { display: table-cell; }
}
""".strip()
