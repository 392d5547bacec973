"""The SQL of every result table, as views over the rows; `storage.catalogue` creates them in this order.

Averages are named for what they are and never share a column:

- `language_mean`: of one task, over its languages;
- `task_mean`: of `language_mean` over tasks, each task counting once;
- `task_language_mean`: over all (task, language) cells, each cell counting once.

A cell is the mean over seeds of the primary metric. `expected_*` counts what any row of the results
has, so that an average over fewer says so. All values are fractions.
"""

from __future__ import annotations

VIEWS: dict[str, str] = {
    # One row for each (model, condition, setup, variant, seed, step, cell, metric): where the same was
    # evaluated more than once (another checkout of the code, another split), the newest run counts.
    "scores": """
        SELECT m.model, m.condition,
               coalesce(r.setup, '') AS setup, coalesce(r.variant, '') AS variant, r.lambda_distill, r.strategy,
               m.seed, m.step, m.split, m.method, m.task, m.language, m.metric, m.value, m.is_primary,
               m.examples, m.run
        FROM metrics AS m LEFT JOIN runs AS r USING (run)
        QUALIFY row_number() OVER (
            PARTITION BY m.model, m.condition, coalesce(r.setup, ''), coalesce(r.variant, ''), m.seed, m.step,
                         m.method, m.task, m.language, m.metric
            ORDER BY r.created_at DESC NULLS LAST, m.run DESC) = 1
    """,
    # Of several checkpoints of one training run, the last one evaluated on the cell.
    "final_scores": """
        SELECT * FROM scores
        QUALIFY row_number() OVER (
            PARTITION BY model, condition, setup, variant, seed, method, task, language, metric
            ORDER BY step DESC NULLS LAST) = 1
    """,
    "cells": """
        SELECT model, condition, setup, variant, method, task, language, metric, is_primary,
               any_value(lambda_distill) AS lambda_distill, avg(value) AS value,
               count(DISTINCT coalesce(seed, -1)) AS seeds, stddev_samp(value) AS seed_deviation,
               min(examples) AS examples
        FROM final_scores
        GROUP BY model, condition, setup, variant, method, task, language, metric, is_primary
    """,
    "grid": """
        SELECT DISTINCT task, language FROM metrics WHERE is_primary
    """,
    "task_averages": """
        SELECT model, condition, setup, variant, method, task, metric, is_primary,
               any_value(lambda_distill) AS lambda_distill,
               avg(value) AS language_mean, count(*) AS languages,
               (SELECT count(*) FROM grid WHERE grid.task = cells.task) AS expected_languages,
               max(seeds) AS seeds
        FROM cells
        GROUP BY model, condition, setup, variant, method, task, metric, is_primary
    """,
    "averages": """
        WITH over_cells AS (
            SELECT model, condition, setup, variant, method, any_value(lambda_distill) AS lambda_distill,
                   avg(value) AS task_language_mean, count(*) AS cells
            FROM cells WHERE is_primary GROUP BY model, condition, setup, variant, method),
        over_tasks AS (
            SELECT model, condition, setup, variant, method, avg(language_mean) AS task_mean, count(*) AS tasks,
                   max(seeds) AS seeds
            FROM task_averages WHERE is_primary GROUP BY model, condition, setup, variant, method)
        SELECT model, condition, setup, variant, method, lambda_distill, task_mean, tasks,
               (SELECT count(DISTINCT task) FROM grid) AS expected_tasks,
               task_language_mean, cells, (SELECT count(*) FROM grid) AS expected_cells, seeds
        FROM over_cells JOIN over_tasks USING (model, condition, setup, variant, method)
    """,
    # Differences of two trained conditions of one model, cell by cell, all else but the distillation
    # being the same (`setup`). Each distilled variant meets the control of its own variant.
    "gaps": """
        WITH pairs (minuend, subtrahend) AS (
            VALUES ('distilled', 'finetuned'), ('control', 'finetuned'), ('distilled', 'control'))
        SELECT a.model, a.setup, pairs.minuend || '-' || pairs.subtrahend AS gap, pairs.minuend, pairs.subtrahend,
               a.variant, b.variant AS subtrahend_variant, a.method, a.task, a.language, a.metric, a.is_primary,
               a.value - b.value AS difference, a.value, b.value AS subtrahend_value,
               least(a.seeds, b.seeds) AS seeds
        FROM pairs
        JOIN cells AS a ON a.condition = pairs.minuend
        JOIN cells AS b ON b.condition = pairs.subtrahend
        WHERE a.model = b.model AND a.setup = b.setup AND a.method = b.method AND a.task = b.task
          AND a.language = b.language AND a.metric = b.metric
          AND (a.variant = b.variant OR b.condition = 'finetuned')
    """,
    "task_gaps": """
        SELECT model, setup, gap, minuend, subtrahend, variant, method, task, metric, is_primary,
               avg(difference) AS difference, count(*) AS languages,
               (SELECT count(*) FROM grid WHERE grid.task = gaps.task) AS expected_languages,
               min(seeds) AS seeds
        FROM gaps
        GROUP BY model, setup, gap, minuend, subtrahend, variant, method, task, metric, is_primary
    """,
    # How much is lost on the way from English to the other languages.
    "transfer_gaps": """
        SELECT model, condition, setup, variant, task, metric,
               avg(value) FILTER (WHERE language = 'en') AS english,
               avg(value) FILTER (WHERE language <> 'en') AS other_languages,
               english - other_languages AS transfer_gap,
               count(*) FILTER (WHERE language <> 'en') AS languages
        FROM cells WHERE is_primary
        GROUP BY model, condition, setup, variant, task, metric
    """,
    # Scores along training: one row for each task and step, over languages and seeds.
    "checkpoint_curves": """
        SELECT model, condition, setup, variant, task, metric, step, avg(value) AS language_mean,
               count(DISTINCT language) AS languages,
               (SELECT count(*) FROM grid WHERE grid.task = scores.task) AS expected_languages,
               count(DISTINCT coalesce(seed, -1)) AS seeds
        FROM scores WHERE is_primary AND step IS NOT NULL
        GROUP BY model, condition, setup, variant, task, metric, step
    """,
    # Fixed λ only: under any other strategy λ is a starting point or an upper bound.
    "lambda_sweep": """
        SELECT t.model, t.condition, t.setup, t.variant, t.lambda_distill, t.task, t.metric, t.language_mean,
               t.languages, t.expected_languages, t.language_mean - f.language_mean AS difference_to_finetuned
        FROM task_averages AS t
        LEFT JOIN task_averages AS f
          ON f.model = t.model AND f.setup = t.setup AND f.task = t.task AND f.metric = t.metric
         AND f.condition = 'finetuned'
        WHERE t.is_primary AND t.condition IN ('distilled', 'control') AND t.lambda_distill IS NOT NULL
          AND regexp_matches(t.variant, '^λ=[0-9.e+-]+$')
    """,
    # The last logged value of every training run, by task and metric.
    "training_ends": """
        SELECT l.run, l.model, l.condition, l.view, l.seed, r.strategy, r.lambda_distill, l.step, l.task, l.metric,
               l.value
        FROM training_log AS l LEFT JOIN runs AS r USING (run)
        QUALIFY row_number() OVER (PARTITION BY l.run, l.task, l.metric ORDER BY l.step DESC) = 1
    """,
}
