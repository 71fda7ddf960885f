"""What runs in the browser besides the page itself: its style and a small script."""

from __future__ import annotations

STYLE = """
html, body { overflow: hidden !important; background: #0d1014; }
.v-application { font-size: 13px; }
.column { height: 100%; display: flex; flex-direction: column; }
.pinned { flex: none; border-top: 1px solid #242b34; max-height: 60%; }
.over-picture .choice { background: rgba(20, 24, 30, .85); } .over-picture .choice.on { background: #264059; }
.panel { overflow-y: auto; overflow-x: hidden; padding: 10px 12px; scrollbar-width: thin;
  scrollbar-color: #3a4450 transparent; }
.section { font-size: 11px; letter-spacing: .08em; text-transform: uppercase; color: #8b98a7; margin: 14px 0 6px;
  display: flex; align-items: center; min-height: 20px; }
.section:first-child { margin-top: 0; }
.rows { border: 1px solid #242b34; border-radius: 4px; overflow-y: auto; scrollbar-width: thin;
  scrollbar-color: #3a4450 transparent; }
.row { display: flex; align-items: center; gap: 8px; padding: 0 8px; min-height: 28px; cursor: pointer;
  border-left: 3px solid transparent; }
.row + .row { border-top: 1px solid #1d232b; }
.row:hover { background: #1d242d; }
.row.chosen { background: #1f2c3a; border-left-color: #6ea8d8; }
.row .name { flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row:focus-visible { outline: 2px solid #6ea8d8; outline-offset: -2px; }
.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
.quiet { color: #8b98a7; }
.mark { width: 18px; height: 18px; border-radius: 3px; font-size: 11px; font-weight: 700; display: inline-flex;
  align-items: center; justify-content: center; flex: none; border: 1px solid #38424e; color: transparent; }
.mark.A { background: #0f5c4a; color: #d9fff3; border-color: #0f5c4a; }
.mark.m { background: #2a5b86; color: #e3f2ff; border-color: #2a5b86; }
.mark.M { background: #8a5f00; color: #fff3d6; border-color: #8a5f00; }
.mark.R { background: #8c3323; color: #ffe6e0; border-color: #8c3323; }
.figures { width: 100%; border-collapse: collapse; font-size: 12.5px; }
.figures th { font-weight: 500; color: #8b98a7; text-align: right; padding: 2px 4px; }
.figures th:first-child, .figures td:first-child { text-align: left; }
.figures td { padding: 2px 4px; text-align: right; font-variant-numeric: tabular-nums; border-top: 1px solid #1d232b; }
.figures td:first-child { color: #b7c1cc; }
.swatch { width: 10px; height: 10px; border-radius: 2px; display: inline-block; flex: none; }
.line { display: flex; align-items: center; gap: 8px; min-height: 30px; }
.line > .what { width: 92px; flex: none; color: #b7c1cc; }
.under { margin-top: 6px; }
.row-heads { display: flex; gap: 8px; padding-right: 9px; letter-spacing: 0; font-size: 12px; }
.row-heads .number, .dice { width: 30px; }
.choices { display: flex; flex-wrap: wrap; gap: 4px; }
.in-head { text-transform: none; letter-spacing: 0; font-size: 13px; }
.choice { border: 1px solid #38424e; border-radius: 4px; padding: 3px 9px; cursor: pointer; user-select: none;
  background: transparent; color: #d7dde4; font: inherit; display: inline-flex; align-items: center; gap: 6px; }
.choice:hover:not(:disabled) { background: #1d242d; }
.choice:focus-visible { outline: 2px solid #6ea8d8; outline-offset: 1px; }
.choice.on { background: #264059; border-color: #6ea8d8; color: #fff; }
.choice:disabled { opacity: .4; cursor: default; }
.notice { border-left: 3px solid #b98a2f; background: #241f14; color: #e8dcc0; padding: 5px 8px; margin-bottom: 4px;
  border-radius: 0 4px 4px 0; font-size: 12px; overflow-wrap: anywhere; }
.problem { border-left: 3px solid #cf5b45; background: #2a1815; color: #f6d5cd; padding: 6px 8px; margin: 6px 0;
  border-radius: 0 4px 4px 0; font-size: 12.5px; overflow-wrap: anywhere; }
.said { border-left: 3px solid #2f8f72; background: #12231e; color: #cdeee2; padding: 5px 8px; margin: 6px 0;
  border-radius: 0 4px 4px 0; font-size: 12px; overflow-wrap: anywhere; }
.text-in { width: 100%; background: #0f1318; color: #e6ebf0; border: 1px solid #38424e; border-radius: 4px;
  padding: 6px 8px; font: inherit; resize: vertical; }
.text-in:focus { outline: 2px solid #6ea8d8; border-color: transparent; }
.bar { height: 6px; background: #242b34; border-radius: 3px; overflow: hidden; }
.bar > div { height: 100%; background: #6ea8d8; }
.layout-grid-item { border-color: #20262e !important; min-width: 0; min-height: 0; overflow: hidden; }
.layout-grid-container, .layout-grid-container > div { min-width: 0; min-height: 0; }
.view-words { position: absolute; inset: 0; pointer-events: none; color: #c5ced8; font-size: 12px;
  text-shadow: 0 0 3px #000, 0 0 2px #000; }
.view-words > span { position: absolute; }
.view-words .title { top: 6px; left: 8px; font-weight: 600; }
.view-words .where { top: 6px; right: 8px; font-variant-numeric: tabular-nums; }
.view-words .left { left: 8px; top: 50%; } .view-words .right { right: 8px; top: 50%; }
.view-words .top { top: 6px; left: 50%; } .view-words .bottom { bottom: 26px; left: 50%; }
.view-slider { position: absolute; left: 10px; right: 10px; bottom: 4px; }
.view-slider input, .slider { width: 100%; height: 16px; accent-color: #6ea8d8; background: transparent; margin: 0; }
.view-slider input:focus-visible, .slider:focus-visible { outline: 2px solid #6ea8d8; outline-offset: 2px;
  border-radius: 4px; }
.gone { max-width: 560px; margin: 12vh auto; padding: 24px; color: #e6ebf0; background: #171b21; border-radius: 6px;
  border: 1px solid #2b333d; font: 15px/1.5 Roboto, sans-serif; }
.gone h1 { font-size: 19px; margin-bottom: 8px; } .gone textarea { min-height: 90px; margin: 8px 0; }
.gone code { color: #9cc7ea; }
"""

# A view has one picture for all pages, in the size that the last page asked for: a page that is looked at again asks
# for its own.
SCRIPT = """
(function () {
  if (window.mstkdReview) { return; }
  window.mstkdReview = true;
  function sizes() {
    if (document.visibilityState !== 'visible' || !window.trame || !trame.client || !trame.client.isConnected()) {
      return;
    }
    const session = trame.client.getConnection().getSession();
    document.querySelectorAll('[data-view]').forEach(function (words) {
      const area = words.parentElement.querySelector('.remote-controlled-area') || words.parentElement;
      if (area.clientWidth > 10 && area.clientHeight > 10) {
        session.call('trame.rca.size', [words.dataset.view, 'again',
          {w: area.clientWidth, h: area.clientHeight, p: window.devicePixelRatio}]);
      }
    });
  }
  window.addEventListener('focus', sizes);
  document.addEventListener('visibilitychange', sizes);
  document.documentElement.addEventListener('mouseenter', sizes);
})();
"""
