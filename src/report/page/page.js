'use strict';
// Draws the report. All text enters through textContent: names come from model files.
(() => {
  // Control characters and marks that turn the reading direction are not shown.
  const readable = v => typeof v === 'string' ? v.replace(/[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g, '?') : v;
  const report = JSON.parse(document.getElementById('report').textContent, (key, value) => readable(value));
  const page = document.getElementById('page');

  // ---- elements -------------------------------------------------------------------------------
  function make(tag, options = {}, ...children) {
    const e = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (key === 'class') e.className = value;
      else if (key === 'text') e.textContent = value;
      else if (key === 'style') Object.assign(e.style, value);
      else e.setAttribute(key, value);
    }
    for (const c of children) if (c !== null && c !== undefined) e.append(c);
    return e;
  }
  const at = path => path.slice(1).split('/').reduce((o, k) => o[k], report);
  const finite = x => typeof x === 'number' && Number.isFinite(x);

  // ---- numbers as people read them ------------------------------------------------------------
  const bytes = b => b >= 1e9 ? (b / 1e9).toFixed(3) + ' GB' : b >= 1e6 ? (b / 1e6).toFixed(2) + ' MB'
    : b >= 1e3 ? (b / 1e3).toFixed(1) + ' kB' : b + ' B';
  function number(x) {
    if (!finite(x)) return '–';
    if (x === 0) return '0';
    const size = Math.abs(x);
    if (size < 1e-4 || size >= 1e6) return x.toExponential(2);
    return x.toFixed(Math.max(0, 3 - Math.floor(Math.log10(size))));
  }
  const share = x => finite(x) ? (100 * x).toFixed(2) + ' %' : '–';
  const bits = x => finite(x) ? x.toFixed(3) : '–';
  const count = x => x.toLocaleString('en-US');
  const seconds = s => s < 60 ? Math.round(s) + ' s' : s < 3600
    ? Math.floor(Math.round(s) / 60) + ' min ' + Math.round(s) % 60 + ' s'
    : Math.floor(Math.round(s) / 3600) + ' h ' + Math.floor(Math.round(s) % 3600 / 60) + ' min';

  // A number of the report: readable text, with where it stands in the JSON and its exact value.
  function shown(path, format = number) {
    const value = at(path);
    return make('span', {'data-path': path, 'data-value': JSON.stringify(value), title: String(value), text: format(value)});
  }
  // Of a comparison: with fewer windows its intervals are too narrow to be shown.
  const leastWindows = 5;
  const holds = c => c.n_windows >= leastWindows;
  function interval(path, format = number) {
    const e = at(path);
    if (!holds(at(path.replace(/\/[^/]*$/, '')))) return make('span');
    if (!finite(e.low) || !finite(e.high) || (e.low === 0 && e.high === 0)) return make('span');
    return make('span', {class: 'interval'}, '95 % [', shown(path + '/low', format), ', ',
      shown(path + '/high', format), ']');
  }

  function section(title, lead, ...children) {
    return make('section', {}, make('h2', {text: title}), lead ? make('p', {class: 'lead', text: lead}) : null,
      ...children);
  }
  function tile(name, big, ...more) {
    return make('div', {class: 'tile'}, make('div', {class: 'name', text: name}),
      make('div', {class: 'big'}, ...big), make('div', {class: 'more'}, ...more));
  }

  // ---- headline -------------------------------------------------------------------------------
  const fileName = path => path.split('/').pop() || path;
  function headline() {
    const change = report.source_bytes > 0 ? 100 * (report.output_bytes / report.source_bytes - 1) : 0;
    const goal = make('p', {class: 'lead'}, 'Asked for ', make('code', {text: report.goal || 'nothing'}));
    page.append(make('header', {}, make('div', {class: 'brand', text: 'microtome · what the cut cost'}),
      make('h1', {}, make('span', {text: fileName(report.source)}), make('span', {class: 'arrow', text: '  →  '}),
        make('span', {text: fileName(report.output)})), goal));
    const tiles = make('div', {class: 'tiles'});
    tiles.append(
      tile('Size of the file', [shown('/output_bytes', bytes)], 'from ', shown('/source_bytes', bytes),
        ` (${change > 0 ? '+' : ''}${change.toFixed(1)} %)`),
      tile('Bits per weight', [shown('/output_bits', bits)], 'from ', shown('/source_bits', bits),
        ', embedding and head included'));
    if (report.comparisons.length) {
      const c = '/comparisons/0';
      tiles.append(
        tile('KL divergence, mean', [shown(c + '/kl_mean/value'), make('small', {text: ' nats'})],
          interval(c + '/kl_mean')),
        tile('Same top token', [shown(c + '/same_top/value', share)], interval(c + '/same_top', share)),
        tile('Perplexity', [shown(c + '/perplexity/value')], 'from ', shown(c + '/base_perplexity/value'),
          make('br'), interval(c + '/perplexity')));
    }
    tiles.append(tile('Predicted KL', [shown('/predicted_kl'), make('small', {text: ' nats'})],
      ...(report.optimality_gap >= 1e-6
        ? ['plan optimal within ', shown('/optimality_gap', x => +(100 * x).toPrecision(2) + ' %')]
        : [report.optimality_gap >= 0 ? 'plan optimal' : 'one format for all, not optimised'])));
    page.append(tiles);
  }

  // ---- proof ----------------------------------------------------------------------------------
  function proof(c, i) {
    const base = '/comparisons/' + i;
    const rows = [
      ['Perplexity of the original', 'base_perplexity', number], ['Perplexity of the cut', 'perplexity', number],
      ['KL divergence, mean', 'kl_mean', number], ['KL, median', 'kl_median', number],
      ['KL, 90th percentile', 'kl_p90', number], ['KL, 99th percentile', 'kl_p99', number],
      ['KL, 99.9th percentile', 'kl_p999', number], ['KL, largest', 'kl_max', number],
      ['Same most likely token', 'same_top', share],
      ['True token’s probability, mean change', 'dp_mean', share],
      ['True token’s probability, RMS change', 'dp_rms', share]];
    const body = make('tbody');
    for (const [name, field, format] of rows) {
      const path = `${base}/${field}`;
      body.append(make('tr', {}, make('td', {class: 'text', text: name}),
        make('td', {}, shown(path + '/value', format)), make('td', {}, interval(path, format))));
    }
    const table = make('table', {class: 'list'}, make('thead', {}, make('tr', {},
      make('th', {class: 'text', text: 'measure'}), make('th', {text: 'value'}), make('th', {text: 'interval'}))), body);
    const lead = `Both models side by side on ${c.corpus}: ${count(c.n_tokens)} tokens scored in ` +
      `${count(c.n_windows)} windows of ${count(c.n_ctx)}, ${c.path} path. KL in nats a token; ` +
      (holds(c) ? 'intervals by bootstrap over windows.' : `intervals need ${leastWindows} windows.`);
    page.append(section(i === 0 ? 'The proof' : 'Also measured', lead, make('div', {class: 'scroll'}, table)));
  }

  // ---- frontier -------------------------------------------------------------------------------
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let chart = null;
  function frontier() {
    if (!report.frontier.length) return;
    const canvas = make('canvas', {role: 'img', 'aria-label': 'Predicted loss by file size'});
    const body = make('tbody');
    report.frontier.forEach((_, i) => body.append(make('tr', {},
      make('td', {}, shown(`/frontier/${i}/bytes`, bytes)), make('td', {}, shown(`/frontier/${i}/bits_per_weight`, bits)),
      make('td', {}, shown(`/frontier/${i}/predicted_kl`)))));
    const table = make('table', {class: 'list'}, make('thead', {}, make('tr', {}, make('th', {text: 'size'}),
      make('th', {text: 'bits per weight'}), make('th', {text: 'predicted KL'}))), body);
    page.append(section('Size against loss',
      'Each point of the curve is the best plan of its size. The ring is the plan that was chosen, ' +
      'the square what the finished file measured, with its interval.',
      make('div', {class: 'chart'}, canvas),
      make('details', {}, make('summary', {text: 'The curve as numbers'}), make('div', {class: 'scroll'}, table))));
    drawFrontier(canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawFrontier(canvas));
  }
  function drawFrontier(canvas) {
    if (chart) chart.destroy();
    const ink = style('--ink'), soft = style('--soft'), line = style('--line');
    const accent = style('--accent'), warm = style('--warm'), card = style('--card');
    const curve = report.frontier.filter(p => p.predicted_kl > 0).map(p => ({x: p.bytes, y: p.predicted_kl, p}));
    const datasets = [
      {label: 'best plans (predicted)', data: curve, showLine: true, borderColor: accent, backgroundColor: accent,
        borderWidth: 2, pointRadius: 2.5, pointHoverRadius: 5, cubicInterpolationMode: 'monotone', order: 3}];
    if (report.predicted_kl > 0)
      datasets.push({label: 'this plan (predicted)', data: [{x: report.output_bytes, y: report.predicted_kl}],
        borderColor: accent, backgroundColor: card, borderWidth: 2.5, pointRadius: 8, pointHoverRadius: 9, order: 2});
    const proved = report.comparisons.length ? report.comparisons[0].kl_mean : null;
    if (proved && proved.value > 0)
      datasets.push({label: 'this file (measured)', data: [{x: report.output_bytes, y: proved.value, e: proved}],
        borderColor: warm, backgroundColor: warm, pointStyle: 'rect', pointRadius: 5, pointHoverRadius: 8, order: 1});
    const whiskers = {
      id: 'whiskers',
      afterDatasetsDraw(c) {
        if (!proved || !holds(report.comparisons[0]) || !(proved.low > 0) || !(proved.high > 0)) return;
        const x = c.scales.x.getPixelForValue(report.output_bytes), g = c.ctx;
        const top = c.scales.y.getPixelForValue(proved.high), bottom = c.scales.y.getPixelForValue(proved.low);
        g.save();
        g.strokeStyle = warm;
        g.lineWidth = 2;
        g.beginPath();
        g.moveTo(x, top); g.lineTo(x, bottom);
        for (const y of [top, bottom]) { g.moveTo(x - 7, y); g.lineTo(x + 7, y); }
        g.stroke();
        g.restore();
      }};
    const grid = {color: line, borderColor: line}, font = {size: 12};
    chart = new Chart(canvas, {
      type: 'scatter', data: {datasets}, plugins: [whiskers],
      options: {
        responsive: true, maintainAspectRatio: false, animation: false,
        scales: {
          x: {title: {display: true, text: 'size of the file', color: soft}, grid,
            ticks: {color: soft, font, maxTicksLimit: 8, callback: v => bytes(v).replace(/\.?0+ /, ' ')}},
          y: {type: 'logarithmic', title: {display: true, text: 'KL divergence, nats a token', color: soft}, grid,
            ticks: {color: soft, font, callback: v => /^[125]/.test(v.toExponential()) ? String(+v.toPrecision(1)) : ''}}},
        plugins: {
          legend: {labels: {color: ink, usePointStyle: true, boxWidth: 9, padding: 14, sort: (a, b) => a.datasetIndex - b.datasetIndex}},
          tooltip: {callbacks: {label: i => {
            const d = i.raw;
            const e = d.e && holds(report.comparisons[0]) ? ` [${number(d.e.low)}, ${number(d.e.high)}]` : '';
            const b = d.p ? `, ${bits(d.p.bits_per_weight)} bits per weight` : '';
            return `${bytes(d.x)}${b}: KL ${number(d.y)}${e}`;
          }}}}}});
  }

  // ---- heat-maps ------------------------------------------------------------------------------
  // One hue each, by lightness, so that they read the same whatever colours the eye tells apart.
  const ramps = {
    blue: [[228, 240, 250], [189, 217, 240], [117, 171, 214], [46, 118, 178], [10, 62, 120]],
    warm: [[255, 244, 229], [253, 219, 174], [246, 163, 92], [208, 95, 21], [122, 44, 4]]};
  function colour(ramp, t) {
    const r = ramps[ramp], x = Math.min(1, Math.max(0, t)) * (r.length - 1), i = Math.min(r.length - 2, Math.floor(x));
    return r[i].map((v, k) => Math.round(v + (r[i + 1][k] - v) * (x - i)));
  }
  function inkOn(rgb) {
    const [r, g, b] = rgb.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b > .3 ? '#14171b' : '#ffffff';
  }
  const known = ['attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down'];
  const bitsOf = p => p.n_weights > 0 ? 8 * p.bytes_to / p.n_weights : NaN;
  const lossOf = p => p.measured_kl !== null && p.measured_kl >= 0 ? p.measured_kl : p.predicted_kl;

  function heatMap(ramp, value, scale, format, describe) {
    const layers = [...new Set(report.places.filter(p => p.layer >= 0).map(p => p.layer))].sort((a, b) => a - b);
    const roles = [...new Set(report.places.filter(p => p.layer >= 0).map(p => p.role))];
    const rank = r => known.includes(r) ? known.indexOf(r) : known.length;
    roles.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
    const values = report.places.map(value).filter(v => finite(v) && scale.takes(v));
    const high = scale.to(values.reduce((a, b) => Math.max(a, b), -Infinity));
    // What lies far below the largest is one shade: the scale is for telling the large ones apart.
    const low = Math.max(scale.to(values.reduce((a, b) => Math.min(a, b), Infinity)), high - scale.span);
    const cell = (p, span = 1) => {
      if (!p) return make('td', {class: 'none', text: '·'});
      const v = value(p), t = finite(v) && scale.takes(v) ? (high > low ? (scale.to(v) - low) / (high - low) : .5) : 0;
      const rgb = colour(ramp, t);
      return make('td', {colspan: span, title: describe(p), text: format(v),
        style: {background: `rgb(${rgb.join()})`, color: inkOn(rgb)}});
    };
    const places = new Map(report.places.map(p => [p.layer + '/' + p.role, p]));
    const body = make('tbody');
    for (const p of report.places.filter(q => q.layer < 0))
      body.append(make('tr', {}, make('th', {scope: 'row', text: p.role, title: p.place}), cell(p, Math.max(1, roles.length))));
    for (const l of layers)
      body.append(make('tr', {}, make('th', {scope: 'row', text: l}), ...roles.map(r => cell(places.get(l + '/' + r)))));
    const head = make('thead', {}, make('tr', {}, make('th', {text: 'layer'}),
      ...roles.map(r => make('th', {scope: 'col', text: r.replace(/^(attn|ffn)_/, '').replace('output', 'out'), title: r}))));
    const stops = [0, .25, .5, .75, 1].map(t => `rgb(${colour(ramp, t).join()})`);
    const ends = values.length ? [scale.from(low), scale.from(high)] : [NaN, NaN];
    return make('div', {}, make('div', {class: 'scroll'}, make('table', {class: 'heat'}, head, body)),
      make('div', {class: 'legend'}, make('span', {text: format(ends[0])}),
        make('span', {class: 'ramp', style: {background: `linear-gradient(90deg, ${stops.join()})`}}),
        make('span', {text: format(ends[1])})));
  }
  function maps() {
    if (!report.places.length) return;
    const describe = p => `${p.place}\n${p.from} → ${p.to}, ${bits(bitsOf(p))} bits per weight\n` +
      `${bytes(p.bytes_from)} → ${bytes(p.bytes_to)}\npredicted KL ${number(p.predicted_kl)}` +
      (p.measured_kl >= 0 ? `, measured ${number(p.measured_kl)}` : '');
    const linear = {takes: () => true, to: x => x, from: x => x, span: Infinity};
    const log = {takes: x => x > 0, to: Math.log, from: Math.exp, span: Math.log(3000)};
    const milli = x => {
      if (!finite(x)) return '–';
      const m = 1000 * x;
      return m <= 0 ? '0' : m < 0.01 ? '<.01' : m < 1 ? m.toFixed(2).slice(1) : m < 10 ? m.toFixed(1) : m.toFixed(0);
    };
    page.append(make('div', {class: 'maps'},
      section('Bits per weight', 'Where the bytes went, layer by layer. Darker: more bits.',
        heatMap('blue', bitsOf, linear, x => finite(x) ? x.toFixed(2) : '–', describe)),
      section('Loss', 'KL of each place alone in thousandths of a nat: measured where it was, else predicted. Darker: more; a step of shade is a factor.',
        heatMap('warm', lossOf, log, milli, describe))));
  }

  // ---- places ---------------------------------------------------------------------------------
  function places() {
    if (!report.places.length) return;
    const largest = report.places.reduce((m, p) => Math.max(m, p.predicted_kl || 0, p.measured_kl || 0), 0);
    const columns = [
      {name: 'place', text: true, key: p => p.place}, {name: 'format', text: true, key: p => p.to},
      {name: 'bits', key: bitsOf}, {name: 'size', key: p => p.bytes_to},
      {name: 'predicted KL', key: p => p.predicted_kl}, {name: 'measured KL', key: p => p.measured_kl},
      {name: '', text: true}];
    const rows = report.places.map((p, i) => {
      const base = '/places/' + i;
      const measured = p.measured_kl !== null && p.measured_kl >= 0;
      const wide = v => ({width: largest > 0 ? Math.max(0, 100 * v / largest).toFixed(2) + '%' : '0'});
      const bars = make('td', {class: 'bars'}, make('span', {class: 'bar', style: wide(p.predicted_kl || 0)}),
        measured ? make('span', {class: 'bar measured', style: wide(p.measured_kl)}) : null);
      return {p, row: make('tr', {}, make('td', {class: 'text mono', text: p.place}),
        make('td', {class: 'text', text: p.from === p.to ? p.to : `${p.from} → ${p.to}`}),
        make('td', {text: bits(bitsOf(p))}), make('td', {}, shown(base + '/bytes_to', bytes)),
        make('td', {}, shown(base + '/predicted_kl')),
        measured ? make('td', {}, shown(base + '/measured_kl')) : make('td', {text: '–'}), bars)};
    });
    const body = make('tbody'), head = make('tr');
    const limit = 40;
    let all = rows.length <= limit + 10, sorted = rows;
    const more = make('button', {class: 'more-rows', type: 'button', text: `Show all ${count(rows.length)} places`});
    const fill = () => {
      // Rows past the limit stay in the table, hidden: a search in the page's source finds them.
      sorted.forEach(({row}, i) => { row.hidden = !all && i >= limit; });
      body.replaceChildren(...sorted.map(r => r.row));
      more.hidden = all;
    };
    more.addEventListener('click', () => { all = true; fill(); });
    const sort = (column, th, descending) => {
      for (const h of head.children) h.removeAttribute('aria-sort');
      th.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
      const value = r => { const v = column.key(r.p); return typeof v === 'number' || typeof v === 'string' ? v : -Infinity; };
      sorted = [...rows].sort((a, b) => {
        const x = value(a), y = value(b);
        return (x < y ? -1 : x > y ? 1 : 0) * (descending ? -1 : 1);
      });
      fill();
    };
    for (const column of columns) {
      const th = make('th', {class: column.text ? 'text' : '', scope: 'col'});
      if (column.key) {
        const button = make('button', {type: 'button', text: column.name});
        button.addEventListener('click', () => sort(column, th,
          th.hasAttribute('aria-sort') ? th.getAttribute('aria-sort') === 'ascending' : !column.text));
        th.append(button);
      }
      head.append(th);
    }
    sorted = [...rows].sort((a, b) => (finite(lossOf(b.p)) ? lossOf(b.p) : -Infinity) - (finite(lossOf(a.p)) ? lossOf(a.p) : -Infinity));
    fill();
    page.append(section('Place by place', 'Predicted beside measured, largest losses first; a click on a heading sorts.',
      make('div', {}, make('span', {class: 'key'}, make('i'), 'predicted'),
        make('span', {class: 'key'}, make('i', {class: 'measured'}), 'measured')),
      make('div', {class: 'scroll'}, make('table', {class: 'list', id: 'places'}, make('thead', {}, head), body)), more));
  }

  // ---- notes and receipt ----------------------------------------------------------------------
  function receipt() {
    if (report.notes.length)
      page.append(section('Notes', '', make('ul', {class: 'notes'}, ...report.notes.map(n => make('li', {text: n})))));
    const list = make('dl');
    const fact = (name, value, mono) => list.append(make('dt', {text: name}), make('dd', {class: mono ? 'mono' : ''}, value));
    fact('Source', report.source);
    fact('SHA-256', report.source_sha256 || '–', true);
    fact('Output', report.output);
    fact('SHA-256', report.output_sha256 || '–', true);
    report.comparisons.forEach(c => fact(`Text “${c.corpus}”`, c.corpus_sha256 || '–', true));
    fact('Weights', shown('/n_weights', count));
    fact('Exact size', shown('/output_bytes', b => count(b) + ' bytes'));
    fact('Time', shown('/seconds', seconds));
    fact('Peak memory', shown('/peak_memory_bytes', bytes));
    fact('Processor', report.cpu || '–');
    fact('microtome', report.version || '–');
    page.append(section('Receipt', '', list));
  }

  headline();
  frontier();
  maps();
  report.comparisons.forEach(proof);
  places();
  receipt();
  document.body.dataset.rendered = 'yes';
})();
