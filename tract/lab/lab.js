// Copy the labels of ipywidgets' sliders to their handles, where assistive technology finds them.
const name = () => document.querySelectorAll('.tract [role=slider]:not([aria-label])').forEach(
  handle => { const label = handle.closest('.widget-inline-hbox')?.querySelector('label');
    if (label) handle.setAttribute('aria-label', label.textContent) });
// Keep the keyboard's focus when a table of runs is redrawn.
let last = null;
const stay = () => {
  if (!last || last.isConnected) return;
  const same = [...document.querySelectorAll('.tract-table :is(input, button)')].find(
    one => one.name == last.name && one.value == last.value);
  if (same && document.activeElement == document.body) same.focus();
  last = null };
if (!window.tractClicked) {
  document.addEventListener('focusin', event => {
    last = event.target.closest('.tract-table') ? event.target : null });
  new MutationObserver(() => { name(); stay() }).observe(
    document.body, {childList: true, subtree: true}) }
// Send the pressed head and the ticked rows to Python as the value of a text field.
window.tractClicked = source => {
  const table = source.closest('.tract-table'), field = table.querySelector('input[type=text]');
  const rows = [...table.querySelectorAll('input:checked')].map(tick => tick.value);
  const sort = source.name == 'sort' ? source.value : '';
  field.value = JSON.stringify({sort, rows, time: Date.now()});
  field.dispatchEvent(new Event('input', {bubbles: true})) };
name()
