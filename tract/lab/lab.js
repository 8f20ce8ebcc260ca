// Sliders of ipywidgets have a label that assistive technology does not find: it is put on them.
const name = () => document.querySelectorAll('.tract [role=slider]:not([aria-label])').forEach(
  handle => { const label = handle.closest('.widget-inline-hbox')?.querySelector('label');
    if (label) handle.setAttribute('aria-label', label.textContent) });
if (!window.tractNames) {
  window.tractNames = new MutationObserver(name);
  window.tractNames.observe(document.body, {childList: true, subtree: true}) }
name()
