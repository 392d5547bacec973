"""The SQL of every result table, as views over the rows; `catalogue` creates them in this order.

Averages are named for what they are and never share a column:

- `language_mean`: of one task, over its languages;
- `task_mean`: of `language_mean` over tasks, each task counting once;
- `task_language_mean`: over all (task, language) cells, each cell counting once.

A *series* is what one row or column of a table is about: `SERIES` names the columns that tell one from
another. All rows of a series come from runs that differ in seed and step alone. A cell is the mean over
seeds of the primary metric at one training step. `expected_*` counts what any row of the results has, so
that an average over fewer says so. All values are fractions, but `cross_entropy` and `kl` (nats per answer token),
`log_loss` (nats), `brier` and `perplexity`; differences of those are better if they are negative.

Students of one experiment that leave out different folds are of one series, like seeds. Scored on the same rows, they
are averaged; each scored on its own held-out fold (`split = 'held_out'`), their rows are pooled.
"""

from __future__ import annotations

from logitbank.experiment import CHECKPOINT_NAME, CONDITIONS, GAPS

# setup: all that is shared by what may be compared; variant and taught_by: how a student was distilled, and from what
SERIES = "model, condition, setup, variant, taught_by"
_OF_SERIES = (  # functions of the series, to name it by
    "max(max_steps) AS max_steps, any_value(view) AS view, any_value(store_fingerprint) AS store_fingerprint, "
    "any_value(lambda_distill) AS lambda_distill, any_value(strategy) AS strategy"
)
_AS_ASKED = (
    "avg(demonstrations) AS demonstrations, avg(demonstrations_wanted) AS demonstrations_wanted, "
    "avg(cut_short) AS cut_short"
)
# The last part of a hub id or path, and the one before it where that is the name of any checkpoint: `big/final`.
_TEACHER = f"regexp_extract(rtrim(r.teacher, '/'), '([^/]+/)?({CHECKPOINT_NAME.pattern})$|[^/]+$')"
_TRAINED = [condition for condition in CONDITIONS.values() if condition.trained]
_BY_VIEW = "\n".join(f"WHEN coalesce(r.view, '') = '{each.view or ''}' THEN '{each.name}'" for each in _TRAINED)
_TAUGHT = ", ".join(f"'{condition.name}'" for condition in _TRAINED if condition.view is not None)
# Scores of different kinds are never averaged: of answers, of the likelihood of gold answers, of class probabilities.
_KIND = "CASE method WHEN 'teacher_forced' THEN 'likelihood' WHEN 'classify' THEN 'classes' ELSE 'answers' END"
# A student of classes is often its best checkpoint on held-out rows, whose step differs from seed to seed.
_STEP = "CASE WHEN method <> 'classify' THEN step END"
_BEST = "coalesce(regexp_matches(checkpoint, '(^|/)best/*$'), false)"
_POOLED = "(split = 'held_out' AND held_out_fold IS NOT NULL)"
_GAPS = ", ".join(f"('{minuend}', '{subtrahend}')" for minuend, subtrahend in GAPS)

VIEWS: dict[str, str] = {
    # One row for each evaluation or import. Rows of schema versions before 3 lack what their setup leaves out: the
    # training run's own row says how long it was, and its store's fingerprint stands for the training set. Sweeps
    # of those versions had condition names of their own (`sft`, `fewshot-fixed-lambda0.05`).
    "evaluations": f"""
        SELECT r.run, r.kind, r.model,
               CASE WHEN r.training_run IS NULL THEN r.condition
                    WHEN r.condition = 'sft' OR starts_with(r.condition,
                         concat_ws('-', r.view, replace(r.strategy, '*', '+'))) AND r.view IS NOT NULL
                    THEN CASE {_BY_VIEW} ELSE r.condition END
                    ELSE r.condition END AS condition,
               CASE WHEN r.training_run IS NULL OR r.training_set IS NOT NULL THEN coalesce(r.setup, '')
                    ELSE concat_ws('/', r.setup, left(r.store_fingerprint, 6), t.step) END AS setup,
               CASE WHEN r.view IS NULL AND r.training_run IS NOT NULL THEN '' ELSE coalesce(r.variant, '') END
                    AS variant,
               CASE WHEN r.view IS NULL OR coalesce(r.view_fingerprint, r.store_fingerprint) IS NULL THEN ''
                    ELSE concat_ws(' ', {_TEACHER}, r.view, 'K=' || r.top_k,
                                   left(coalesce(r.view_fingerprint, r.store_fingerprint), 6)) END AS taught_by,
               r.view, r.teacher, r.top_k, r.store_fingerprint, r.training_set, r.lambda_distill, r.strategy, r.seed,
               r.held_out_fold, r.step, coalesce(r.max_steps, t.step) AS max_steps, r.checkpoint, r.training_run,
               r.created_at
        FROM runs AS r
        LEFT JOIN (SELECT run, any_value(step) AS step FROM runs WHERE kind = 'training' GROUP BY run) AS t
          ON t.run = r.training_run
        WHERE r.kind <> 'training'
    """,
    # Where the same was evaluated more than once (a student trained again, data that changed), the newest run counts,
    # alone. Published numbers may come cell by cell from several files.
    "scores": """
        SELECT m.model, coalesce(e.condition, m.condition) AS condition, coalesce(e.setup, '') AS setup,
               coalesce(e.variant, '') AS variant, coalesce(e.taught_by, '') AS taught_by, e.view,
               e.store_fingerprint, e.lambda_distill, e.strategy, e.max_steps, m.seed, e.held_out_fold, m.step,
               m.checkpoint, m.split, m.method,
               m.task, m.language, m.metric, m.value, m.is_primary, m.examples, m.demonstrations,
               m.demonstrations_wanted, m.cut_short, m.examples_hash, m.against, e.created_at, m.run
        FROM metrics AS m LEFT JOIN evaluations AS e USING (run)
        QUALIFY m.run = first_value(m.run) OVER (
            PARTITION BY m.model, coalesce(e.condition, m.condition), coalesce(e.setup, ''), coalesce(e.variant, ''),
                         coalesce(e.taught_by, ''), m.seed, e.held_out_fold, m.step, m.method,
                         CASE WHEN m.method = 'imported' THEN concat_ws('/', m.task, m.language, m.metric) END
            ORDER BY e.created_at DESC NULLS LAST, m.run DESC)
    """,
    # Of several steps the last one evaluated, for the whole series: where it is evaluated in part, it shows part. Of
    # classes the best checkpoint, else the last step, of each student by itself. Of several data in one cell (the data
    # set changed between two seeds), the newest; of seeds scored on their held-out folds, those with most folds.
    "final_scores": f"""
        SELECT * FROM scores WHERE method <> 'classify'
        QUALIFY step IS NOT DISTINCT FROM max(step) OVER (PARTITION BY {SERIES}, method)
            AND examples_hash IS NOT DISTINCT FROM first_value(examples_hash) OVER (
                PARTITION BY {SERIES}, method, task, language ORDER BY created_at DESC NULLS LAST, run DESC)
        UNION ALL BY NAME
        SELECT * EXCLUDE (folds) FROM (
            SELECT *, count(DISTINCT CASE WHEN {_POOLED} THEN held_out_fold END) OVER (
                       PARTITION BY {SERIES}, task, language, seed) AS folds
            FROM (
                SELECT * FROM scores WHERE method = 'classify'
                QUALIFY run = first_value(run) OVER (
                        PARTITION BY {SERIES}, seed, held_out_fold
                        ORDER BY {_BEST} DESC, step DESC NULLS LAST, created_at DESC NULLS LAST, run DESC)
                    AND examples_hash IS NOT DISTINCT FROM first_value(examples_hash) OVER (
                        PARTITION BY {SERIES}, task, language, CASE WHEN {_POOLED} THEN held_out_fold END
                        ORDER BY created_at DESC NULLS LAST, run DESC)))
        QUALIFY folds = max(folds) OVER (PARTITION BY {SERIES}, task, language)
    """,
    # The rows of all held-out folds of one seed together: every mean over rows weighs a fold by its rows. The expected
    # calibration error is not such a mean; tables compute it from the predictions.
    "pooled_scores": f"""
        WITH final AS MATERIALIZED (SELECT * FROM final_scores)
        SELECT * EXCLUDE (held_out_fold), (held_out_fold IS NOT NULL)::BIGINT AS folds
        FROM final WHERE NOT {_POOLED}
        UNION ALL BY NAME
        SELECT {SERIES}, max(step) AS step, any_value(split) AS split, method, task, language, metric, is_primary,
               against, {_OF_SERIES}, seed,
               CASE WHEN count(*) = 1 THEN any_value(value) ELSE sum(value * examples) / sum(examples) END AS value,
               sum(examples)::BIGINT AS examples, {_AS_ASKED},
               string_agg(examples_hash, ' ' ORDER BY held_out_fold) AS examples_hash, count(*) AS folds
        FROM final WHERE {_POOLED}
        GROUP BY {SERIES}, method, task, language, metric, is_primary, against, seed
        HAVING metric <> 'ece' OR count(*) = 1
    """,
    "cells": f"""
        SELECT {SERIES}, max(step) AS step, method, task, language, metric, is_primary, against, {_OF_SERIES},
               any_value(split) AS split, avg(value) AS value, count(DISTINCT coalesce(seed, -1)) AS seeds,
               (sum(folds) / count(DISTINCT coalesce(seed, -1)))::BIGINT AS folds,
               stddev_samp(value) AS seed_deviation, min(examples) AS examples, {_AS_ASKED},
               any_value(examples_hash) AS examples_hash
        FROM pooled_scores
        GROUP BY {SERIES}, {_STEP}, method, task, language, metric, is_primary, against
    """,
    "grid": f"""
        SELECT DISTINCT task, language, {_KIND} AS scored_by FROM metrics WHERE is_primary
    """,
    "task_averages": f"""
        SELECT {SERIES}, step, method, task, metric, is_primary, against, {_OF_SERIES}, any_value(split) AS split,
               avg(value) AS language_mean, count(*) AS languages,
               (SELECT count(*) FROM grid WHERE grid.task = cells.task) AS expected_languages,
               max(seeds) AS seeds, min(seeds) AS fewest_seeds, max(folds) AS folds, {_AS_ASKED}
        FROM cells
        GROUP BY {SERIES}, step, method, task, metric, is_primary, against
    """,
    # Each kind of score is averaged apart.
    "averages": f"""
        WITH over_cells AS (
            SELECT {SERIES}, step, method, {_OF_SERIES}, avg(value) AS task_language_mean, count(*) AS cells
            FROM cells WHERE is_primary GROUP BY {SERIES}, step, method),
        over_tasks AS (
            SELECT {SERIES}, method, avg(language_mean) AS task_mean, count(*) AS tasks,
                   max(seeds) AS seeds, min(fewest_seeds) AS fewest_seeds
            FROM task_averages WHERE is_primary GROUP BY {SERIES}, method)
        SELECT {SERIES}, step, method, max_steps, view, store_fingerprint, lambda_distill, strategy, task_mean, tasks,
               (SELECT count(DISTINCT task) FROM grid WHERE scored_by = {_KIND}) AS expected_tasks,
               task_language_mean, cells,
               (SELECT count(*) FROM grid WHERE scored_by = {_KIND}) AS expected_cells,
               seeds, fewest_seeds
        FROM over_cells JOIN over_tasks USING ({SERIES}, method)
    """,
    # Differences of two trained conditions of one model, cell by cell, on the same examples, after the same training
    # (`setup`) of the same length and at the same step, which early stopping makes differ for students of classes. Two
    # taught students are paired where store and variant are the same, so that the view alone differs.
    "gaps": f"""
        WITH pairs (minuend, subtrahend) AS (VALUES {_GAPS})
        SELECT a.model, a.setup, pairs.minuend || '-' || pairs.subtrahend AS gap, pairs.minuend, pairs.subtrahend,
               a.variant, b.variant AS subtrahend_variant, a.taught_by, b.taught_by AS subtrahend_taught_by,
               a.step, a.max_steps, a.store_fingerprint, a.lambda_distill, a.strategy, a.split,
               a.method, a.task, a.language, a.metric, a.is_primary, a.against,
               a.value - b.value AS difference, a.value, b.value AS subtrahend_value,
               least(a.seeds, b.seeds) AS seeds
        FROM pairs
        JOIN cells AS a ON a.condition = pairs.minuend
        JOIN cells AS b ON b.condition = pairs.subtrahend
        WHERE a.model = b.model AND a.setup = b.setup AND a.method = b.method AND a.task = b.task
          AND a.language = b.language AND a.metric = b.metric AND a.against IS NOT DISTINCT FROM b.against
          AND (a.method = 'classify' OR (a.step IS NOT DISTINCT FROM b.step
                                         AND a.max_steps IS NOT DISTINCT FROM b.max_steps))
          AND a.examples_hash IS NOT DISTINCT FROM b.examples_hash
          AND (b.condition NOT IN ({_TAUGHT})
               OR (a.variant = b.variant AND a.store_fingerprint IS NOT DISTINCT FROM b.store_fingerprint))
    """,
    "task_gaps": """
        SELECT model, setup, gap, minuend, subtrahend, variant, subtrahend_variant, taught_by, subtrahend_taught_by,
               step, max_steps, any_value(store_fingerprint) AS store_fingerprint, any_value(split) AS split, method,
               task, metric, is_primary, against, any_value(lambda_distill) AS lambda_distill,
               any_value(strategy) AS strategy,
               avg(difference) AS difference, count(*) AS languages,
               (SELECT count(*) FROM grid WHERE grid.task = gaps.task) AS expected_languages,
               min(seeds) AS seeds
        FROM gaps
        GROUP BY model, setup, gap, minuend, subtrahend, variant, subtrahend_variant, taught_by, subtrahend_taught_by,
                 step, max_steps, method, task, metric, is_primary, against
    """,
    # How much is lost on the way from English to the other languages.
    "transfer_gaps": f"""
        SELECT {SERIES}, step, any_value(max_steps) AS max_steps, task, metric,
               avg(value) FILTER (WHERE language = 'en') AS english,
               avg(value) FILTER (WHERE language <> 'en') AS other_languages,
               english - other_languages AS transfer_gap,
               count(*) FILTER (WHERE language <> 'en') AS languages
        FROM cells WHERE is_primary
        GROUP BY {SERIES}, step, task, metric
    """,
    # Scores along training: one row for each task and step, over languages and seeds. Of classes only the steps at
    # which all students of the series were evaluated: where one stops early, the mean is of others.
    "checkpoint_curves": f"""
        WITH every AS (
            SELECT *, count(DISTINCT (seed, held_out_fold)) OVER (PARTITION BY {SERIES}, method, task) AS students
            FROM scores WHERE is_primary AND step IS NOT NULL AND NOT {_POOLED})
        SELECT {SERIES}, max(max_steps) AS max_steps, task, metric, step, avg(value) AS language_mean,
               count(DISTINCT language) AS languages,
               (SELECT count(*) FROM grid WHERE grid.task = every.task) AS expected_languages,
               count(DISTINCT coalesce(seed, -1)) AS seeds
        FROM every
        GROUP BY {SERIES}, method, task, metric, step
        HAVING method <> 'classify' OR count(DISTINCT (seed, held_out_fold)) = any_value(students)
    """,
    # Fixed λ only: under any other strategy λ is a starting point or an upper bound. The difference is over the
    # `compared_languages` that both have.
    "lambda_sweep": f"""
        SELECT t.model, t.condition, t.setup, t.variant, t.taught_by, t.step, t.max_steps, t.lambda_distill,
               t.task, t.metric, t.language_mean, t.languages, t.expected_languages, t.seeds,
               g.difference AS difference_to_finetuned, g.languages AS compared_languages
        FROM task_averages AS t
        LEFT JOIN task_gaps AS g
          ON g.gap = t.condition || '-finetuned' AND g.model = t.model AND g.setup = t.setup
         AND g.variant = t.variant AND g.taught_by = t.taught_by AND g.method = t.method AND g.task = t.task
         AND g.metric = t.metric
        WHERE t.is_primary AND t.condition IN ({_TAUGHT}) AND t.lambda_distill IS NOT NULL
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
