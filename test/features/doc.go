// Package features ties the tests to the table of what must work, features.txt, and makes docs/features.md
// from the results of their runs.
//
// A test says which row it proves and what of it, with words that stand in the source as they are:
//
//	features.Row(t, "B1", "exit codes become phases")
//
// A script below testdata says it with the command row, whose check lasts until the next row or the
// script's end:
//
//	row B1 exit codes become phases
//
// With MOTE_TEST_FEATURES=FILE each check leaves a line there when it begins and one when it ends.
// scripts/features reads these files, finds all checks in the sources (Scan), and writes the page: passed or failed
// as it ran, and not run for the others. Record is safe for concurrent use, by processes too.
package features
