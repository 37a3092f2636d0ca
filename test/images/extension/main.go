// Command extension is a pod that the API server calls. It serves a mutating admission webhook at
// /admit, which marks each object that it has seen, and an aggregated API, demo.mote.test/v1, with
// one resource, "greetings". It serves TLS with /tls/tls.crt and /tls/tls.key.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	group   = "demo.mote.test"
	version = group + "/v1"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /admit", admit)
	mux.HandleFunc("GET /apis/"+version, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, metav1.APIResourceList{
			TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: version,
			APIResources: []metav1.APIResource{{Name: "greetings", SingularName: "greeting", Kind: "Greeting", Namespaced: true, Verbs: metav1.Verbs{"get"}}},
		})
	})
	mux.HandleFunc("GET /apis/"+version+"/namespaces/{namespace}/greetings/{name}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, map[string]any{
			"apiVersion": version, "kind": "Greeting",
			"metadata": map[string]string{"name": path.Base(r.URL.Path), "namespace": r.PathValue("namespace")},
			"spec":     map[string]string{"text": "hello " + r.Header.Get("X-Remote-User")},
		})
	})
	srv := &http.Server{Addr: ":8443", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	if err := srv.ListenAndServeTLS("/tls/tls.crt", "/tls/tls.key"); err != nil {
		fmt.Fprintln(os.Stderr, "extension:", err)
		os.Exit(1)
	}
}

func admit(w http.ResponseWriter, r *http.Request) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, fmt.Sprintf("want an AdmissionReview: %v", err), http.StatusBadRequest)
		return
	}
	json6902 := admissionv1.PatchTypeJSONPatch
	review.Response = &admissionv1.AdmissionResponse{
		UID: review.Request.UID, Allowed: true, PatchType: &json6902,
		Patch: []byte(`[{"op": "add", "path": "/metadata/annotations", "value": {"seen-by": "webhook"}}]`),
	}
	answer(w, review)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		fmt.Fprintln(os.Stderr, "extension: the answer was not sent:", err)
	}
}
