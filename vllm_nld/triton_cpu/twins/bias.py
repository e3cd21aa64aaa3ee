"""Allowed tokens, logit bias, minimum length and bad words: logits changed for given tokens."""

import numpy as np

from vllm_nld.triton_cpu.twins.pointers import NEG_INF, forbid, load, store


def apply_bias(
    grid_0,  # N
    grid_1,
    logits,  # [N, V], read and written
    logits_stride,
    vocab_size,
    expanded_idx_mapping,  # [N]
    num_allowed_token_ids,  # [M], 0 if all are allowed
    allowed_token_ids,  # [M, most]
    allowed_token_ids_stride,
    num_logit_bias,  # [M]
    bias_token_ids,  # [M, most]
    bias_token_ids_stride,
    bias,  # [M, most]
    bias_stride,
    pos,  # [N]
    min_lens,  # [M], stop tokens are forbidden while pos + 1 is below this
    num_stop_token_ids,  # [M]
    restore_when_all_masked,  # [M]
    stop_token_ids,  # [M, most]
    stop_token_ids_stride,
    BLOCK_SIZE,
    LOGITS_BLOCK_SIZE,
    CHECK_ALL_MASKED_ROWS,
):
    """In order: forbid all but the allowed tokens, add the biases, forbid stop tokens before the minimum length.

    With CHECK_ALL_MASKED_ROWS, a row that would have no token left gets its finite stop tokens back.
    """
    for n in range(grid_0):
        row = n * logits_stride
        request = expanded_idx_mapping[n]
        allowed = num_allowed_token_ids[request]
        if allowed > 0:
            ids = request * allowed_token_ids_stride
            kept = np.empty(allowed, np.float32)
            for i in range(allowed):
                kept[i] = load(logits, row + allowed_token_ids[ids + i])
            for token in range(vocab_size):
                forbid(logits, row + token)
            for i in range(allowed):
                store(logits, row + allowed_token_ids[ids + i], kept[i])
        for i in range(num_logit_bias[request]):
            at = row + bias_token_ids[request * bias_token_ids_stride + i]
            store(logits, at, load(logits, at) + bias[request * bias_stride + i])
        stops = num_stop_token_ids[request]
        if stops > 0 and pos[n] + 1 < min_lens[request]:
            ids = request * stop_token_ids_stride
            kept = np.empty(stops, np.float32)
            for i in range(stops):
                kept[i] = load(logits, row + stop_token_ids[ids + i])
            for i in range(stops):
                forbid(logits, row + stop_token_ids[ids + i])
            if CHECK_ALL_MASKED_ROWS and restore_when_all_masked[request] != 0:
                top = NEG_INF
                for token in range(vocab_size):
                    top = max(top, load(logits, row + token))
                if top == NEG_INF:
                    for i in range(stops):
                        if np.isfinite(kept[i]):
                            store(logits, row + stop_token_ids[ids + i], kept[i])


def apply_bad_words(
    grid_0,  # N
    grid_1,  # maximum number of bad words per request
    logits,  # [N, V], written
    logits_stride,
    expanded_idx_mapping,  # [N]
    bad_word_token_ids,  # [M, most] flat, one word after another
    bad_word_token_ids_stride,
    bad_word_offsets,  # [M, most + 1] start of each word
    bad_word_offsets_stride,
    num_bad_words,  # [M]
    all_token_ids,  # [M, length]
    all_token_ids_stride,
    prompt_len,  # [M]
    total_len,  # [M]
    input_ids,  # [N] the input token of each row: the last sampled token, then drafts
    expanded_local_pos,  # [N]
):
    """Forbid a bad word's last token if its other tokens end the output, including drafts of earlier rows."""
    for row in range(grid_0):
        request = expanded_idx_mapping[row]
        drafts = expanded_local_pos[row]
        first_draft = row - drafts + 1
        prompt = prompt_len[request]
        output = total_len[request] - prompt
        tokens = request * all_token_ids_stride + prompt
        words = request * bad_word_token_ids_stride
        offsets = request * bad_word_offsets_stride
        for word in range(min(num_bad_words[request], grid_1)):
            begin = words + bad_word_offsets[offsets + word]
            last = words + bad_word_offsets[offsets + word + 1] - 1
            start = output + drafts - (last - begin)
            matches = start >= 0
            for i in range(last - begin):
                if not matches:
                    break
                at = start + i
                actual = all_token_ids[tokens + at] if at < output else input_ids[first_draft + at - output]
                matches = actual == bad_word_token_ids[begin + i]
            if matches:
                forbid(logits, row * logits_stride + bad_word_token_ids[last])
