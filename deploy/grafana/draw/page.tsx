// A page that shows a dashboard without a Grafana: its panels, with @grafana/ui, from the answers of a Prometheus.
import {
  createTheme,
  dateTime,
  DisplayValue,
  Field,
  FieldConfig,
  FieldType,
  getDisplayProcessor,
  getFieldDisplayName,
  getValueFormat,
  MutableDataFrame,
  ThemeContext,
  VizOrientation,
} from '@grafana/data';
import { BarGauge, BigValue, GlobalStyles, PanelChrome, TimeSeries } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { createRoot } from 'react-dom/client';
import 'uplot/dist/uPlot.min.css';

const theme = createTheme({ colors: { mode: 'dark' } });
const WIDTH = 1600;
const GAP = 8;
const CELL_HEIGHT = 30;

type Answer = { target: any; data: any };
type Given = { model: any; data: Record<string, Answer[]>; start: number; end: number };

// -- from answers to frames

function legend(target: any, metric: Record<string, string>): string {
  return target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_: string, label: string) => metric[label] ?? '').trim();
}

function merge(base: any, more: any): any {
  const made = { ...base };
  for (const [key, value] of Object.entries(more))
    made[key] = value && typeof value === 'object' && !Array.isArray(value) ? merge(base[key] ?? {}, value) : value;
  return made;
}

function config(panel: any, name: string): FieldConfig {
  let made = structuredClone(panel.fieldConfig.defaults);
  for (const override of panel.fieldConfig.overrides) {
    if (override.matcher.options !== name) continue;
    for (const { id, value } of override.properties) {
      const nested = id.split('.').reverse().reduce((inner: any, key: string) => ({ [key]: inner }), value);
      made = merge(made, nested);
    }
  }
  return made;
}

function field(panel: any, name: string, values: any[], labels: any, index: number): Field {
  const made: Field = {
    name,
    type: typeof values[0] === 'string' ? FieldType.string : FieldType.number,
    values,
    labels,
    config: { ...config(panel, name), displayNameFromDS: name },
    state: { seriesIndex: index },
  };
  const numbers = values.filter((value) => typeof value === 'number');
  const [min, max] = [made.config.min ?? Math.min(0, ...numbers), made.config.max ?? Math.max(1e-9, ...numbers)];
  made.state!.range = { min, max, delta: max - min };
  made.display = getDisplayProcessor({ field: made, theme });
  return made;
}

function times(values: number[]): Field {
  return { name: 'Time', type: FieldType.time, values, config: {} };
}

function seriesFrames(panel: any, answers: Answer[]): any[] {
  const frames: any[] = [];
  for (const { target, data } of answers)
    for (const series of data.result) {
      const points: [number, string][] = series.values ?? [series.value];
      const name = legend(target, series.metric);
      const values = points.map(([, value]) => (value === 'NaN' ? null : Number(value)));
      frames.push({
        refId: target.refId,
        length: points.length,
        fields: [times(points.map(([at]) => at * 1000)), field(panel, name, values, {}, frames.length)],
      });
    }
  return frames;
}

function tableFrame(panel: any, answers: Answer[]): any {
  // What Grafana's transformations "merge" and "organize" do for instant queries that share their labels.
  const { renameByName, excludeByName } = panel.transformations[1].options;
  const rows = new Map<string, Record<string, any>>();
  for (const { target, data } of answers)
    for (const series of data.result) {
      const labels = Object.fromEntries(Object.entries(series.metric).filter(([key]) => !excludeByName[key]));
      const key = JSON.stringify(labels);
      rows.set(key, { ...(rows.get(key) ?? labels), [`Value #${target.refId}`]: Number(series.value[1]) });
    }
  const [{ displayName: sortedBy }] = panel.options.sortBy;
  const by = Object.keys(renameByName).find((name) => renameByName[name] === sortedBy)!;
  const sorted = [...rows.values()].sort((a, b) => b[by] - a[by]);
  const fields = Object.entries<string>(renameByName).map(([name, title], index) =>
    field(panel, title, sorted.map((row) => row[name] ?? null), {}, index)
  );
  for (const each of fields) if (each.values.some((value: any) => typeof value === 'string')) each.type = FieldType.string;
  return new MutableDataFrame({ fields });
}

// -- pictures

function last(frame: any): number | null {
  return frame.fields[1].values.filter((value: any) => value !== null).at(-1) ?? null;
}

function Stat({ panel, answers, width, height }: any) {
  const [frame] = seriesFrames(panel, answers);
  if (!frame) return <NoData />;
  const shown: DisplayValue = frame.fields[1].display(last(frame));
  if (panel.options.textMode === 'name') shown.title = frame.fields[1].name;
  const sparkline = panel.options.graphMode === 'area' ? { x: frame.fields[0], y: frame.fields[1] } : undefined;
  const { colorMode, graphMode, justifyMode, textMode } = panel.options;
  return <BigValue {...{ width, height, value: shown, sparkline, colorMode, graphMode, justifyMode, textMode, theme }} />;
}

function Graph({ panel, answers, width, height, start, end }: any) {
  const frames = seriesFrames(panel, answers);
  if (!frames.length) return <NoData />;
  const timeRange = { from: dateTime(start * 1000), to: dateTime(end * 1000), raw: { from: '', to: '' } } as any;
  return (
    <TimeSeries {...{ frames, width, height, timeRange, timeZone: 'utc', legend: panel.options.legend, options: {} }} />
  );
}

function Bars({ panel, answers, width, height }: any) {
  const frames = seriesFrames(panel, answers);
  const each = Math.min(40, height / Math.max(1, frames.length));
  const values = frames.map((frame) => ({ frame, value: frame.fields[1].display(last(frame)) }));
  for (const { frame, value } of values) value.title = frame.fields[1].name;
  const widest = values.reduce((a, { value }) => (value.title.length > a.length ? value.title : a), '');
  const factors = { title: widest, text: values.reduce((a, { value }) => (value.text.length > a.length ? value.text : a), '') };
  return (
    <div>
      {values.map(({ frame, value }, index) => (
        <div key={index} style={{ height: each }}>
          <BarGauge
            {...{ width, height: each - 6, field: frame.fields[1].config, display: frame.fields[1].display, value, theme }}
            orientation={VizOrientation.Horizontal}
            displayMode={panel.options.displayMode}
            alignmentFactors={factors}
            showUnfilled
            isOverflow={false}
          />
        </div>
      ))}
    </div>
  );
}

function Heatmap({ panel, answers, width, height, start, end }: any) {
  const result = answers[0].data.result
    .map((series: any) => ({ le: series.metric.le === '+Inf' ? Infinity : Number(series.metric.le), values: new Map(series.values) }))
    .sort((a: any, b: any) => a.le - b.le);
  const stamps: number[] = [...new Set<number>(result.flatMap((row: any) => [...row.values.keys()]))].sort((a, b) => a - b);
  const cells = result.map((row: any, index: number) =>
    stamps.map((at) => Number(row.values.get(at) ?? 0) - (index ? Number(result[index - 1].values.get(at) ?? 0) : 0))
  );
  const used = cells.map((row: number[]) => row.some((value) => value > 1e-9));
  const [low, high] = [Math.max(0, used.indexOf(true) - 1), Math.min(cells.length - 1, used.lastIndexOf(true) + 1)];
  const most = Math.max(...cells.flat());
  const [left, bottom] = [70, 24];
  const [w, h] = [(width - left) / Math.max(1, stamps.length), (height - bottom) / (high - low + 1)];
  const format = getValueFormat(panel.fieldConfig.defaults.unit);
  const name = (le: number) => (le === Infinity ? 'more' : (({ text, suffix }) => text + (suffix ?? ''))(format(le, 0)));
  const y = (row: number) => (high - row) * h;
  const every = Math.ceil(16 / h);
  return (
    <svg width={width} height={height} style={{ fontSize: 12 }}>
      {cells.slice(low, high + 1).flatMap((row: number[], index: number) =>
        row.map((value, column) =>
          value > 1e-9 ? (
            <rect key={`${index} ${column}`} x={left + column * w} y={y(low + index)} width={w + 0.2} height={h - 1}
              fill={`hsl(28 ${60 + 40 * (value / most) ** 0.5}% ${20 + 45 * (value / most) ** 0.5}%)`} />
          ) : null
        )
      )}
      {result.slice(low, high + 1).map((row: any, index: number) =>
        index % every ? null : (
          <text key={index} x={left - 6} y={y(low + index) + 5} fill={theme.colors.text.secondary} textAnchor="end">{name(row.le)}</text>
        )
      )}
      {[0, 0.25, 0.5, 0.75].map((share) => (
        <text key={share} x={left + share * (width - left)} y={height - 6} fill={theme.colors.text.secondary}>
          {new Date((start + share * (end - start)) * 1000).toISOString().slice(11, 16)}
        </text>
      ))}
    </svg>
  );
}

function Rows({ panel, answers, width, height }: any) {
  return <TableNG data={tableFrame(panel, answers)} width={width} height={height} cellHeight={panel.options.cellHeight} />;
}

function NoData() {
  return <div style={{ textAlign: 'center', color: theme.colors.text.secondary, paddingTop: 30 }}>No data</div>;
}

const KINDS: Record<string, any> = { stat: Stat, timeseries: Graph, bargauge: Bars, heatmap: Heatmap, table: Rows };

// -- the page

function place({ x, y, w, h }: any) {
  const column = WIDTH / 24;
  return { left: x * column, top: y * (CELL_HEIGHT + GAP), width: w * column - GAP, height: h * (CELL_HEIGHT + GAP) - GAP };
}

function Dashboard({ model, data, start, end }: Given) {
  const bottom = Math.max(...model.panels.map((panel: any) => panel.gridPos.y + panel.gridPos.h));
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ background: theme.colors.background.canvas, padding: 16, width: WIDTH + 32 }}>
        <h3>{model.title}</h3>
        <div style={{ position: 'relative', height: bottom * (CELL_HEIGHT + GAP) }}>
          {model.panels.map((panel: any) => {
            const at = place(panel.gridPos);
            if (panel.type === 'row')
              return (
                <div key={panel.id} style={{ position: 'absolute', ...at, fontSize: 16, paddingTop: 6 }}>⌄ {panel.title}</div>
              );
            const Kind = KINDS[panel.type];
            return (
              <div key={panel.id} style={{ position: 'absolute', ...at }}>
                <PanelChrome title={panel.title} description={panel.description} width={at.width} height={at.height}>
                  {(width: number, height: number) => <Kind {...{ panel, answers: data[panel.id], width, height, start, end }} />}
                </PanelChrome>
              </div>
            );
          })}
        </div>
      </div>
    </ThemeContext.Provider>
  );
}

(window as any).draw = (given: Given) => createRoot(document.getElementById('root')!).render(<Dashboard {...given} />);
