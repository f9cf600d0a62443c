// The columns of tables about what agents used of models.

import { cost, number, tokens } from "../format.js";

/** Spend, tokens and steps of groups with usage, for sortableTable(). */
export const USAGE_COLUMNS = [
  { title: "Spend", isNumber: true, by: ({ usage }) => usage.costUsd, cell: ({ usage }) => cost(usage.costUsd) },
  {
    title: "Tokens in",
    isNumber: true,
    by: ({ usage }) => usage.inputTokens,
    cell: ({ usage }) => tokens(usage.inputTokens),
  },
  {
    title: "Tokens out",
    isNumber: true,
    by: ({ usage }) => usage.outputTokens,
    cell: ({ usage }) => tokens(usage.outputTokens),
  },
  {
    title: "Steps",
    isNumber: true,
    css: "wide-only",
    by: ({ usage }) => usage.steps,
    cell: ({ usage }) => number(usage.steps),
  },
];
