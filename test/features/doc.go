// Package features connects the tests with features.txt, the table of features that must work, and
// creates docs/features.md from the results of test runs.
//
// A test names the row that it proves, and what it checks of it, with literal strings:
//
//	features.Row(t, "B1", "exit codes become phases")
//
// A script below testdata uses the command row, whose check lasts until the next row or the
// script's end:
//
//	row B1 exit codes become phases
//
// With MOTE_TEST_FEATURES=FILE each check writes a line to FILE when it begins and one when it
// ends. scripts/features reads these files, finds all checks in the sources (Scan), and writes the
// page: passed or failed for the checks that ran, and not run for the others. Record is safe for
// concurrent use, also by several processes.
package features
