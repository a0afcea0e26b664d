"""mutation gate: bugs of what stands under every search: vectors' magnitudes, filters' mistakes, texts that are cut."""

from __future__ import annotations

import pytest

from tests.harness.mutation_gate import Mutation, check_mutation, check_without_a_bug, mutation_id, needs_the_long_form

SCALING = "projection/test_scaling.py::test_"
SCALE = "projection/test_vector_scale.py::test_"
PARSING = "memory/test_filter_parsing.py::test_"
WINDOW = "embedding/test_text_window.py::test_"
TRUNCATION = "projection/test_truncation.py::test_"

HALF_SCORES = f"{SCALE}scores_are_cosines_at_every_magnitude[3072-sql]"
SINGLE_SCORES = f"{SCALE}scores_are_cosines_at_every_magnitude[2000-sql]"
FUNCTIONS = f"{SCALE}vectors_that_a_function_makes_are_scaled_too[sql]"

MUTATIONS = (
    # -- vectors on their way into the tables and into queries
    Mutation(
        "a vector of the caller's is not scaled",
        "projection/batches",
        "vectors[key] = scaled(own)",
        "vectors[key] = own",
        (HALF_SCORES,),
    ),
    Mutation(
        "a vector of the caller's is not scaled in single precision",
        "projection/scaling",
        "_SAFE_FP32 = (2.0**-20, 2.0**20)",
        "_SAFE_FP32 = (0.0, 2.0**128)",
        (SINGLE_SCORES,),
    ),
    Mutation(
        "a vector of the model's is not scaled",
        "projection/batches",
        "zip(texts, scaled(vectors), strict=True)",
        "zip(texts, vectors, strict=True)",
        (FUNCTIONS,),
    ),
    Mutation(
        "a vector of a row of a user's is not scaled",
        "projection/embed",
        "zip(missing, scaled(vectors), strict=True)",
        "zip(missing, vectors, strict=True)",
        (FUNCTIONS,),
    ),
    Mutation(
        "the vector of a query is not scaled",
        "projection/sql/ranking",
        "Vector(scaled(search.vector))",
        "Vector(search.vector)",
        (HALF_SCORES,),
    ),
    Mutation(
        "half precision is scaled as single is",
        "projection/scaling",
        "if vectors.shape[-1] <= DIMENSIONS_MAX_FP32 else _SAFE_FP16",
        "if vectors.shape[-1] <= DIMENSIONS_MAX_FP16 else _SAFE_FP16",
        (HALF_SCORES,),
    ),
    Mutation(
        "scaling loses digits",
        "projection/scaling",
        "np.ldexp(vectors, -exponents)",
        "np.where(outside, vectors / np.where(outside, largest, 1), vectors)",
        (f"{SCALING}scaling_is_by_a_power_of_two_and_exact",),
    ),
    Mutation(
        "one scale for several vectors",
        "projection/scaling",
        "exponents = np.where(outside, np.frexp(largest)[1], 0)",
        "exponents = np.frexp(largest)[1].max()",
        (f"{SCALING}several_are_scaled_each_by_itself",),
    ),
    # -- what has no direction
    Mutation(
        "a vector without a direction goes into the table",
        "projection/batches",
        "                if has_direction(own):\n",
        "                if True:\n",
        (f"{SCALE}vectors_without_a_direction_in_a_log_are_one_dead_letter_each[3-sql]",),
    ),
    Mutation(
        "a score of the database's is NaN",
        "projection/sql/ranking",
        " AND distance <> 'NaN'",
        "",
        (f"{SCALE}a_score_is_never_nan[3-sql]",),
    ),
    Mutation(
        "a score of the public interface's is NaN",
        "projection/pixeltable/public_api",
        "    if not (has_direction(left) and has_direction(right)):\n",
        "    if False:\n",
        (f"{SCALE}a_score_is_never_nan[3-public API]",),
    ),
    Mutation(
        "a vector that float32 turns is accepted",
        "memory/values",
        "if largest < _FLOAT32_NORMAL_MIN and not",
        "if False and not",
        (f"{SCALE}what_has_no_direction_is_refused_before_the_log[3]",),
    ),
    # -- filters
    Mutation(
        "operators without their dollar are an object",
        "memory/filters",
        "if reason := mistaken_value(literal):",
        "if (reason := mistaken_value(literal)) and False:",
        (f"{PARSING}what_cannot_be_meant_is_an_error_that_says_what_is",),
    ),
    Mutation(
        "OR without its dollar is a field",
        "memory/filters",
        "elif reason := mistaken_key(key, operand):",
        "elif (reason := mistaken_key(key, operand)) and False:",
        (f"{PARSING}what_cannot_be_meant_is_an_error_that_says_what_is",),
    ),
    Mutation(
        "an object with one such key among others is refused",
        "memory/filter_mistakes",
        "if all(word in _MEANT for word in words.values()):",
        "if any(word in _MEANT for word in words.values()):",
        (f"{PARSING}objects_that_are_no_operators_can_be_asked_for",),
    ),
    # -- texts that are cut
    Mutation(
        "the prompt takes no room",
        "embedding/model",
        "[self.document_prompt + texts[place] for place in places]",
        "[texts[place] for place in places]",
        (f"{WINDOW}the_first_text_that_is_cut",),
    ),
    Mutation(
        "texts are told from others by their characters",
        "embedding/window",
        "    return max(as_given, decomposed) * _FOLDED_BYTES_MAX\n",
        "    return len(text)\n",
        (f"{WINDOW}tokens_never_outnumber_their_bound",),
    ),
    Mutation(
        "texts that are cut are not counted",
        "projection/batches",
        "                self._count_truncated(texts)\n",
        "",
        (f"{TRUNCATION}they_are_counted_whoever_makes_the_vector",),
    ),
    Mutation(
        "the listing ends after a page",
        "projection/sql/reads",
        "while rows := cursor.fetchmany(PAGE_ROWS):",
        "if rows := cursor.fetchmany(PAGE_ROWS):",
        (f"{TRUNCATION}more_than_a_page_of_them[sql]",),
    ),
    Mutation(
        "the listing is not of its namespace alone",
        "projection/sql/reads",
        "        where, parameters = self._scope(table, physical, (namespace,))\n        content = physical",
        "        where, parameters = LIVE, dict[str, Any]()\n        content = physical",
        (f"{TRUNCATION}they_are_listed_newest_first[Layout.SHARED-sql]",),
    ),
    # -- errors
    Mutation(
        "a copied error loses what it carries",
        "errors",
        "    error.__dict__.update(attributes)\n",
        "",
        ("engine/test_errors.py::test_every_error_is_copied_whole",),
    ),
    Mutation(
        "a table that is gone is told as a database that is down",
        "projection/sql/failures",
        "            return UnavailableCause.TABLE_GONE\n",
        "            return UnavailableCause.DATABASE_DOWN\n",
        ("engine/test_errors.py::test_what_an_error_of_the_database_says",),
    ),
)


@needs_the_long_form
def test_without_a_bug() -> None:
    check_without_a_bug(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=mutation_id)
def test_mutation_gate(mutation: Mutation) -> None:
    check_mutation(mutation)
