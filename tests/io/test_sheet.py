import numpy as np
import pytest

from svdcli.io.sheet import contact_sheet, labelled_row


def clip(num_frames: int, height: int, width: int, base: int) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), base, np.uint8)
    frames[..., 2] = np.linspace(0, 255, num_frames).round().astype(np.uint8)[:, None, None]
    return frames


def test_rows_are_videos_and_columns_are_time():
    sheet = contact_sheet([clip(9, 30, 40, 50), clip(9, 30, 40, 200)], ["seed 1", "seed 2"], 3)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3
    cells = [(red, blue) for red in (50, 200) for blue in (0, 128, 255)]
    centres = [sheet[row, column] for row in (4 + 22 + 15, 4 + 56 + 22 + 15) for column in (24, 68, 112)]
    assert [(int(pixel[0]), int(pixel[2])) for pixel in centres] == cells


def test_titles_are_drawn_and_cut_to_the_width():
    frames = [clip(2, 30, 40, 0)]
    plain, titled = contact_sheet(frames, [""], 2), contact_sheet(frames, ["seed 7"], 2)
    assert plain.shape == titled.shape
    label = slice(0, 26)
    assert (titled[label] > 150).any() and not (plain[label] > 150).any()
    assert np.array_equal(plain[26:], titled[26:])
    long = contact_sheet(frames, ["very long " * 50 + "\nline"], 2)
    assert long.shape == plain.shape and not (long[label, -4:] > 150).any()


def test_large_videos_shrink_and_other_shapes_fit():
    sheet = contact_sheet([clip(3, 576, 1024, 9), clip(1, 300, 100, 200)], ["a", "b"], 3, cell_width=100)
    assert sheet.shape == (4 + 2 * (22 + 56 + 4), 4 + 3 * 104, 3)
    second = sheet[4 + 82 + 22 :]
    assert (second[:, :104, 0] == 200).any() and not (second[:, 104:, 0] == 200).any()


def test_fewer_frames_than_columns():
    sheet = contact_sheet([clip(2, 30, 40, 50)], ["a"], 6)
    assert sheet.shape[1] == 4 + 2 * 44
    assert contact_sheet([clip(5, 30, 40, 50)], ["a"], 1).shape[1] == 4 + 44


def test_bad_calls_are_our_bugs():
    for frames, titles, columns in [([], [], 3), ([clip(1, 8, 8, 0)], [], 3), ([clip(1, 8, 8, 0)], ["a"], 0)]:
        with pytest.raises(ValueError):
            contact_sheet(frames, titles, columns)


def test_a_row_of_videos_is_one_video_with_labels_above():
    row = labelled_row([clip(3, 30, 40, 50), clip(3, 30, 60, 200)], ["average", "raw"])
    assert row.dtype == np.uint8 and row.shape == (3, 22 + 30, 44 + 64, 3)
    assert (row[:, 22:, :40, 0] == 50).all() and (row[:, 22:, 44:104, 0] == 200).all()
    assert (row[:, 22:, 0, 2] == np.array([0, 128, 255])[:, None]).all()  # time goes on in both
    assert (row[0, :22, :40] > 150).any() and np.array_equal(row[0, :22], row[2, :22])
    blank = labelled_row([clip(3, 30, 40, 50)], [""])
    assert not (blank[0, :22] > 150).any()


def test_rows_of_unequal_videos_are_refused():
    for frames in ([], [clip(3, 30, 40, 0), clip(2, 30, 40, 0)], [clip(3, 30, 40, 0), clip(3, 20, 40, 0)]):
        with pytest.raises(ValueError):
            labelled_row(frames, ["a"] * len(frames))
    with pytest.raises(ValueError):
        labelled_row([clip(3, 30, 40, 0)], [])
