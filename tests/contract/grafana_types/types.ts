// Grafana's own types of what is in a dashboard's JSON. Their enums are the strings in it.
import type { AnnotationQuery, Dashboard, DataQuery, Panel, RowPanel } from '@grafana/schema';
import type { Options as BarGauge } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type { Options as Heatmap } from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type { Options as Stat } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type { Options as Table } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { FieldConfig, Options as TimeSeries } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

type Written<T> = T extends string | number | boolean | null | undefined
  ? T extends string ? T | `${T}` : T
  : { [K in keyof T]: Written<T[K]> };

// Grafana has no published type of these any more.
type Query = DataQuery & {
  expr: string;
  instant: boolean;
  range: boolean;
  editorMode: 'code';
  format: 'time_series' | 'table' | 'heatmap';
  legendFormat: string;
};

type Kind<Name extends string, Options, Custom = unknown> = Omit<Panel, 'type' | 'options' | 'targets' | 'fieldConfig'> & {
  type: Name;
  options: Partial<Options>;
  targets: Query[];
  fieldConfig: Omit<NonNullable<Panel['fieldConfig']>, 'defaults'> & {
    defaults: Omit<NonNullable<Panel['fieldConfig']>['defaults'], 'custom'> & { custom?: Partial<Custom> };
  };
};

type Shown =
  | Kind<'stat', Stat>
  | Kind<'timeseries', TimeSeries, FieldConfig>
  | Kind<'heatmap', Heatmap>
  | Kind<'bargauge', BarGauge>
  | Kind<'table', Table>;

// What Prometheus's data source adds to an annotation is not in Grafana's published types.
type Annotation = AnnotationQuery & {
  expr: string;
  step: string;
  titleFormat: string;
  textFormat: string;
  useValueForTime: string;
};

type Changed = { panels: Array<RowPanel | Shown>; annotations: { list: Annotation[] } };

export type Board = Written<Omit<Dashboard, keyof Changed> & Changed>;
