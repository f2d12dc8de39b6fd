// Draws the dashboards with Grafana's own components, from what a Prometheus knows, into PNG files:
//
//     npm install --no-package-lock && node draw.mjs http://127.0.0.1:9090 OUT_DIRECTORY [MINUTES] [CHROMIUM]
//
// It asks Prometheus what Grafana would ask, and lays the panels out as Grafana would. Heatmaps are drawn by page.tsx
// itself, since Grafana keeps that component in its application; everything else is @grafana/ui.
import { build } from 'esbuild';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const [prometheus, out, minutes = '15', browserPath = '/usr/bin/chromium'] = process.argv.slice(2);
if (!out) {
  console.error('usage: node draw.mjs PROMETHEUS_URL OUT_DIRECTORY [MINUTES] [CHROMIUM]');
  process.exit(2);
}
const here = path.dirname(fileURLToPath(import.meta.url));
const end = Math.floor(Date.now() / 1000);
const start = end - Number(minutes) * 60;
const step = Math.max(1, Math.ceil((end - start) / 400));
const rateInterval = `${Math.max(4 * step, 20)}s`;

async function ask(kind, parameters) {
  const answer = await fetch(`${prometheus}/api/v1/${kind}?${new URLSearchParams(parameters)}`);
  const content = await answer.json();
  if (content.status !== 'success') throw new Error(`${parameters.query}: ${content.error}`);
  return content.data;
}

async function choices(model) {
  // One instance and heap where one has to be chosen, everything where several may be.
  const single = model.templating.list.find((each) => each.name === 'instance')?.multi === false;
  const [busiest] = (await ask('query', { query: 'topk(1, slabd_leases)' })).result;
  return single
    ? { job: '.+', instance: busiest.metric.instance, heap: busiest.metric.heap }
    : { job: '.+', instance: '.+', heap: '.+' };
}

function fill(expr, chosen) {
  let filled = expr.replaceAll('$__rate_interval', rateInterval);
  for (const [name, value] of Object.entries(chosen)) filled = filled.replaceAll(`$${name}`, value);
  return filled;
}

async function answers(model) {
  const chosen = await choices(model);
  const found = {};
  for (const panel of model.panels.filter((each) => each.type !== 'row')) {
    found[panel.id] = await Promise.all(
      panel.targets.map(async (target) => {
        const query = fill(target.expr, chosen);
        const data = target.instant
          ? await ask('query', { query, time: end })
          : await ask('query_range', { query, start, end, step });
        return { target, data };
      })
    );
  }
  return found;
}

const scratch = await mkdtemp(path.join(tmpdir(), 'slabd-draw-'));
await mkdir(out, { recursive: true });
await build({
  entryPoints: [path.join(here, 'page.tsx')],
  bundle: true,
  outfile: path.join(scratch, 'page.js'),
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  loader: { '.svg': 'dataurl', '.ttf': 'dataurl', '.woff2': 'dataurl' },
  jsx: 'automatic',
  logLevel: 'error',
  nodePaths: [path.join(process.cwd(), 'node_modules')],
});
await writeFile(
  path.join(scratch, 'page.html'),
  '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css"><body><div id="root"></div><script src="page.js"></script></body>'
);

const browser = await chromium.launch({
  executablePath: browserPath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--allow-file-access-from-files'],
});
try {
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  page.on('pageerror', (error) => console.error(`page: ${error.message}`));
  for (const file of (await readdir(path.join(here, '..', 'dashboards'))).sort()) {
    const model = JSON.parse(await readFile(path.join(here, '..', 'dashboards', file), 'utf8'));
    const data = await answers(model);
    await page.goto(`file://${scratch}/page.html`);
    await page.evaluate((given) => window.draw(given), { model, data, start, end });
    await page.waitForTimeout(2500);
    const picture = path.join(out, file.replace('.json', '.png'));
    await page.screenshot({ path: picture, fullPage: true });
    console.log(picture);
  }
} finally {
  await browser.close();
  await rm(scratch, { recursive: true });
}
