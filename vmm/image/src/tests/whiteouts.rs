//! Names by which a layer removes what earlier ones have.

use archive::{FILE, FOLDER};

use super::*;

const LOWER: &Entries =
    &[(FILE, "a", "1"), (FILE, "d/x", "1"), (FILE, "d/e/y", "1"), (FILE, "d/e/z", "1")];

#[track_caller]
fn left(upper: &Entries) -> Vec<String> {
    let is_file = |path: &String| !path.ends_with('/');
    files_of(&[LOWER, upper]).into_keys().filter(is_file).collect()
}

#[test]
fn a_whiteout_removes_what_earlier_layers_have() {
    assert_eq!(left(&[(FILE, ".wh.a", "")]), ["/d/e/y", "/d/e/z", "/d/x"]);
    assert_eq!(left(&[(FILE, ".wh.d", "")]), ["/a"]);
    assert_eq!(left(&[(FILE, "d/e/.wh.y", "")]), ["/a", "/d/e/z", "/d/x"]);
    // What is not there, and where nothing is.
    assert_eq!(left(&[(FILE, ".wh.none", ""), (FILE, "none/.wh.a", "")]).len(), 4);
    // The layer's own files stay, whichever comes first.
    for order in [[0, 1], [1, 0]] {
        let both = [(FILE, ".wh.d", ""), (FILE, "d/e/new", "2")];
        let upper = order.map(|at| both[at]);
        assert_eq!(left(&upper), ["/a", "/d/e/new"]);
    }
}

#[test]
fn an_opaque_folder_has_only_what_its_layer_has() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let all = [(FILE, "d/.wh..wh..opq", ""), (FOLDER, "d", ""), (FILE, "d/e/new", "2")];
        assert_eq!(left(&order.map(|at| all[at])), ["/a", "/d/e/new"]);
    }
    assert_eq!(left(&[(FILE, ".wh..wh..opq", "")]), [""; 0]);
    assert_eq!(left(&[(FILE, ".wh..wh.aufs", ""), (FILE, ".wh..wh.plnk", "")]).len(), 4);
}

#[test]
fn a_file_takes_the_place_of_a_folder_and_the_other_way_round() {
    assert_eq!(left(&[(FILE, "d", "2")]), ["/a", "/d"]);
    assert_eq!(left(&[(FOLDER, "a", ""), (FILE, "a/b", "2")])[0], "/a/b");
    // A folder that is there already keeps what is in it.
    assert_eq!(left(&[(FOLDER, "d", "")]).len(), 4);
}
